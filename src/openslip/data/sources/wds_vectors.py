"""Label vectors of a multi-label `wds_*` dataset: members `KEY.npy` beside the images, read without pickle."""

import io
from itertools import groupby

import numpy as np
from jaxtyping import UInt8

from openslip.arrays import check_size
from openslip.data.index.index import Index
from openslip.data.index.scan import group, read
from openslip.data.index.tar import Problems, map_shard
from openslip.errors import UserError, first_line
from openslip.terminal import printable

MOST_BYTES = 1_000_000  # largest size of a member; 100,000 classes as 64-bit numbers take 0.8 MB


def read_vectors(index: Index, num_classes: int | None) -> UInt8[np.ndarray, "images classes"]:
    """Read the label vectors of all samples of local shards, in the order of the samples.

    Args:
        index: index of the shards.
        num_classes: expected length of each vector; None for the length of the first.

    Raises:
        UserError: a sample has no vector, or one of another length or with other values than 0 and 1.
    """
    rows = []
    for shard, samples in groupby(range(len(index)), lambda sample: index.find(sample)[0]):
        name, path = index.shards[shard].name, index.shards[shard].path
        assert path is not None
        with map_shard(path, name) as data:
            groups = group(name, data, Problems(), frozenset(("npy",)))
            for key, extents in groups.items():  # before anything is read: a header may state any size
                if extents["npy"][1] > MOST_BYTES:
                    raise UserError(
                        f"shard {name}: {printable(key)}.npy has {extents['npy'][1]:,} bytes; expected a vector of at "
                        f"most {MOST_BYTES:,}"
                    )
            members = {printable(key): read(data, extents["npy"]) for key, extents in groups.items()}
        for key in map(index.key, samples):
            if key not in members:
                raise UserError(f"shard {name}: {key} has an image and no {key}.npy with its labels")
            row = vector(members[key], f"shard {name}: {key}.npy")
            num_classes = len(row) if num_classes is None else num_classes
            if len(row) != num_classes:
                raise UserError(
                    f"shard {name}: {key}.npy holds {len(row)} labels; expected {num_classes}, one per class"
                )
            rows.append(row)
    return np.stack(rows)


def vector(content: bytes, name: str) -> UInt8[np.ndarray, " classes"]:
    """Decode a vector of zeros and ones of any number type."""
    try:
        check_size(io.BytesIO(content), len(content))
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{name} cannot be read ({first_line(error)})") from error
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise UserError(f"{name} is no vector of zeros and ones (shape {values.shape}, {values.dtype})")
    return values.astype(np.uint8)
