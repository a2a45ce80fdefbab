"""CC3M and CC12M as published SLIP reads them: cc3m.npy lists the paths of the images below ROOT and their captions.

An entry is a dict with `image_name` (CC12M) or `image_id` (CC3M) and `captions` (facebookresearch/SLIP datasets.py and
README), or (path, caption) or (path, captions).
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from openslip.arrays import check_size
from openslip.data.captions.policy import not_texts
from openslip.data.convert import metadata as files
from openslip.data.convert import restricted_pickle
from openslip.data.convert.record import NOT_A_TEXT, LeftOut, Record, one_per_image, record_in
from openslip.errors import UserError


def records(root: Path, *, metadata: Path | None = None, images: Path | None = None) -> Iterator[Record | LeftOut]:
    """Yield records in the order of the file; the entries of one image are joined.

    Args:
        root: folder of the dataset.
        metadata: the .npy file; by default the only one in ROOT.
        images: folder that the paths in the file are relative to; by default ROOT.
    """
    path = files.find(root, metadata, "*.npy")
    yield from one_per_image(partial(of_entries, read(path), files.images_folder(root, images)))


def of_entries(entries: list[Any], folder: Path) -> Iterator[Record | LeftOut]:
    for place, entry in enumerate(entries):
        match entry:
            case (
                {"image_name": str() | int() as name, "captions": captions}
                | {"image_id": str() | int() as name, "captions": captions}
                | (str() | int() as name, captions)
            ):
                values = captions if isinstance(captions, (list, tuple)) else [captions]
                if not_texts(values):
                    yield LeftOut(f"a caption of entry {place}", NOT_A_TEXT)
                texts = tuple(caption for caption in values if isinstance(caption, str))
                stem, _, suffix = str(name).rpartition(".")
                yield record_in(folder, str(name), stem if "/" not in suffix and stem else str(name), texts)
            case _:
                reason = "entry that is no {image_name or image_id, captions} and no (path, caption)"
                yield LeftOut(f"entry {place}", reason)


def read(path: Path) -> list[Any]:
    """Read the array as nested lists, without the code that a pickle in the file may name and numpy.load would run."""
    with path.open("rb") as file:
        try:
            if not check_size(file, path.stat().st_size).hasobject:
                file.seek(0)
                return np.load(file, allow_pickle=False).tolist()
        except (ValueError, EOFError) as error:
            raise UserError(f"{path} is no .npy file ({error}): write or download it again") from error
        entries = restricted_pickle.load(file, path)
    if not isinstance(entries, list):
        raise UserError(f"{path} holds a {type(entries).__name__}, not an array of entries")
    return entries
