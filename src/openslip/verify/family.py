"""Compares our losses and gradients with those of related projects, in double precision, on one and on several ranks.

A folder holds `meta.json`, whose `dims` are sizes and settings; the batch and the losses of one process in
`one_rank.npz`; those of each rank in files such as `two_ranks.npz`; and losses of lightly in `lightly.npz`, which has
its own inputs. `family_losses` has one function per loss. docs/NUMERICS.md#family describes the files.
"""

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from openslip.errors import UserError
from openslip.verify.deviation import Arrays, Part, Row, worst
from openslip.verify.evaluations import failure, shape_rows
from openslip.verify.family_losses import CONTRASTIVE, LIGHTLY, NOT_COMPUTED, Dims, averaged
from openslip.verify.files import read_arrays, read_json
from openslip.verify.processes import run_on_ranks
from openslip.verify.towers import UNKNOWN, deviation

ONE_RANK, RANKS, OF_LIGHTLY, SETTINGS = "one_rank.npz", "*_ranks.npz", "lightly.npz", "meta.json"
TOLERANCE = 1e-7  # relative to the largest recorded absolute value of an array
NOT_COMPARED = {"bank_after": "our queue stores unit rows in float32, lightly's the rows as given"}
# Parts of the names of arrays that are only read.
INPUTS = ("in/", "bank_before", "ptr_before", "center_before")


def has_losses(folder: Path) -> bool:
    """Whether a folder holds losses of related projects; `two_ranks.npz` alone is also in recordings of SLIP's code."""
    return any((folder / name).is_file() for name in (ONE_RANK, OF_LIGHTLY))


def family_rows(folder: Path, device: str, dtype: str) -> list[Row]:
    """Return a row for each recorded loss with its gradients, and one for each that we do not compute.

    Args:
        folder: folder of recorded losses.
        device: device that computes the losses of one process; ranks are processes on the CPU.
        dtype: has no effect: all losses are computed in float64.

    Raises:
        UserError: `meta.json` has no `dims`, or nothing can be compared.
    """
    dims = read_dims(folder / SETTINGS)
    files: dict[str, Arrays] = {}
    rows: list[Row] = []
    for path in (folder / ONE_RANK, *sorted(folder.glob(RANKS)), folder / OF_LIGHTLY):
        if not path.is_file():
            rows.append(Row.skipped(path.name, "no such file"))
            continue
        try:
            files[path.name] = read_arrays(path)
        except Exception as error:  # the other files are compared all the same
            rows.append(failure(path.name, error))
    rows += shape_rows(folder, files)
    for file, arrays in files.items():
        rows += of_lightly(arrays, dims, device) if file == OF_LIGHTLY else contrastive(file, files, dims, device)
    if all(row.deviation is None for row in rows):
        raise UserError(f"{folder}: {ONE_RANK}, {RANKS} and {OF_LIGHTLY} hold no loss that can be compared")
    return rows


def read_dims(path: Path) -> Dims:
    """Return the sizes and settings of the recorded losses.

    Raises:
        UserError: the file cannot be read, or has no `dims` of numbers.
    """
    try:
        dims = read_json(path)["dims"]
        return {name: float(value) for name, value in dims.items() if isinstance(value, int | float)}
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no `dims` of numbers ({error!r}): restore it from a copy") from error


def contrastive(file: str, files: Mapping[str, Arrays], dims: Dims, device: str) -> list[Row]:
    """Return the rows of a file of losses of image and text features, computed on as many ranks as it has."""
    recorded = files[file]
    cases = cases_of(recorded)
    ranks = {int(match[1]) for key in recorded if (match := re.search(r"/rank(\d+)/", key))}
    computed = [case for case in cases if case in CONTRASTIVE]
    batch = {key: array for key, array in files.get(ONE_RANK, {}).items() if key.startswith("in/")}
    try:
        if ranks:
            ours = on_ranks(1 + max(ranks), computed, batch, dims)
        else:
            ours = {case: [CONTRASTIVE[case](batch, dims, device)] for case in computed}
    except Exception as error:
        return [failure(file, error)]
    rows = []
    for case in cases:
        if case not in ours:
            rows.append(Row.skipped(f"{file}: {case}", NOT_COMPUTED.get(case, UNKNOWN)))
            continue
        prefixes = [f"{case}/rank{rank}/" for rank in sorted(ranks)] or [f"{case}/"]
        rows += compared(f"{file}: {case}", recorded, dict(zip(prefixes, ours[case], strict=True)))
    return rows


def on_ranks(world: int, cases: list[str], batch: Arrays, dims: Dims) -> dict[str, list[Arrays]]:
    """Compute losses on `world` ranks, which are gloo processes; return the arrays of each rank by case."""
    with tempfile.TemporaryDirectory() as scratch:
        run_on_ranks(_rank_main, world, world, cases, batch, dims, scratch)
        ranks = [read_arrays(Path(scratch) / f"rank{rank}.npz") for rank in range(world)]
    return {case: averaged(case, [_under(rank, f"{case}/") for rank in ranks]) for case in cases}


def _rank_main(rank: int, world: int, cases: list[str], batch: Arrays, dims: Dims, scratch: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=world)
    own = {key: np.split(array, world)[rank] for key, array in batch.items()}
    arrays: Arrays = {}
    for case in cases:
        arrays |= {f"{case}/{name}": array for name, array in CONTRASTIVE[case](own, dims, "cpu").items()}
    np.savez(Path(scratch) / f"rank{rank}.npz", allow_pickle=False, **arrays)
    dist.barrier()
    dist.destroy_process_group()


def of_lightly(recorded: Arrays, dims: Dims, device: str) -> list[Row]:
    """Return the rows of the losses of lightly; some have several steps or epochs, each with its own arrays."""
    rows = []
    for case in cases_of(recorded):
        label = f"{OF_LIGHTLY}: {case}"
        if case not in LIGHTLY:
            rows.append(Row.skipped(label, NOT_COMPUTED.get(case, UNKNOWN)))
            continue
        try:
            ours = LIGHTLY[case](_under(recorded, f"{case}/"), dims, device)
            rows += compared(label, recorded, {f"{case}/": ours})
        except Exception as error:
            rows.append(failure(label, error))
    return rows


def _under(arrays: Arrays, prefix: str) -> Arrays:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def cases_of(recorded: Arrays) -> list[str]:
    """Return the names of the losses in a file, in its order."""
    return list(dict.fromkeys(key.split("/")[0] for key in recorded if not key.startswith("in/")))


def compared(label: str, recorded: Arrays, ours: Mapping[str, Arrays]) -> list[Row]:
    """Return the row of all recorded arrays of a loss, and one for each array that we do not compute.

    Args:
        label: name of the loss.
        recorded: arrays of its file.
        ours: for each prefix of names in the file, our arrays by the rest of the name.
    """
    parts, rows = [], []
    for prefix, arrays in ours.items():
        for key, array in _under(recorded, prefix).items():
            if key in arrays:
                parts.append(Part(f"{prefix}{key}", apart(arrays[key], array), TOLERANCE))
            elif not any(part in key for part in INPUTS):
                rows.append(Row.skipped(f"{label}: {prefix}{key}", NOT_COMPARED.get(key.rpartition("/")[2], UNKNOWN)))
    return [worst(label, parts), *rows]


def apart(ours: np.ndarray, recorded: np.ndarray) -> float:
    """Return the largest difference of two arrays, relative to the largest recorded absolute value."""
    return deviation(ours, recorded) if ours.shape == recorded.shape else math.inf
