"""Our numbers against recordings of what the published code computed; what equal means: docs/NUMERICS.md#equal.

`files` reads recordings, `recording` repeats a recorded run, `deviation` says how far two values are apart, and each
further file makes the rows of one kind of quantity.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from openslip.errors import UserError, first_line
from openslip.verify.deviation import TOLERANCES, Row
from openslip.verify.files import is_recorded, read_json
from openslip.verify.ranks import rank_rows
from openslip.verify.runs import run_rows
from openslip.verify.split_step import StepParts
from openslip.verify.splits import COVERED, split_rows
from openslip.verify.tables import official_rows, schedule_rows, tokenizer_rows
from openslip.verify.zero_shot import zero_shot_rows


def verify(folder: Path, device: str, dtype: str) -> int:
    """Print one line per quantity; 0 when all are within tolerance, else 1.

    Raises:
        UserError: no such folder, device or dtype, or a folder with none of the recordings.
    """
    return show(compare(folder, device, dtype), f"{device}, {dtype}; {folder}")


def verify_splits(parts: StepParts, batch: dict[str, Tensor]) -> int:
    """Print how far each split of the batch is from the whole batch; 0 when all are within tolerance, else 1.

    Raises:
        UserError: as `split_rows`.
    """
    code = show(split_rows(parts, batch), "cpu, float64")
    Console().print(COVERED, soft_wrap=True, markup=False, highlight=False)
    return code


def show(rows: list[Row], what: str) -> int:
    """Print one line per row and the verdict; 0 when all are within tolerance, else 1."""
    width = max(len(row.quantity) for row in rows)
    say = partial(Console().print, soft_wrap=True, markup=False, highlight=False)
    say(f"{'quantity':<{width}}  deviation  tolerance")
    for row in rows:
        say(row.line(width), style=None if row.ok else "red")
    compared = [row for row in rows if row.deviation is not None]
    within = sum(row.ok for row in compared)
    say(f"{within} of {len(compared)} quantities within tolerance ({what})")
    return 0 if within == len(compared) else 1


def compare(folder: Path, device: str, dtype: str) -> list[Row]:
    """A row for each quantity that the folder records; models, batches and quantities are read from the folder.

    Raises:
        UserError: as `verify`.
    """
    if dtype not in TOLERANCES:
        raise UserError(f"dtype={dtype!r}: expected one of {', '.join(TOLERANCES)}")
    if not device.startswith("cpu") and not torch.cuda.is_available():
        raise UserError(f"device={device!r}: CUDA is not available on this machine; use cpu")
    if dtype == "tf32" and device.startswith("cpu"):
        raise UserError("dtype='tf32' is a format of CUDA devices; use float32 on the cpu")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected recordings of the published code")
    with _one_thread():
        rows = _rows(folder, device, dtype)
    if all(row.deviation is None for row in rows):
        raise UserError(f"{folder}: holds none of the recordings (meta.json, clip.npz, tokenizer.json, ...)")
    return rows


@contextmanager
def _one_thread() -> Iterator[None]:
    # As the recordings were made, and faster for models of their size.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rows(folder: Path, device: str, dtype: str) -> list[Row]:
    rows: list[Row] = []
    if is_recorded(folder / "meta.json"):
        for name in _run_names(folder, rows):
            _add(rows, folder / f"{name}.npz", name, lambda name=name: run_rows(folder, name, device, dtype))
        _add(rows, folder / "two_ranks.npz", "ranks", lambda: rank_rows(folder, dtype))
        _add(rows, folder / "zero_shot.npz", "zero-shot", lambda: zero_shot_rows(folder, device, dtype))
    else:
        rows.append(Row.skipped("training runs, ranks, zero-shot", "no meta.json"))
    _add(rows, folder / "lr_schedules.json", "learning-rate tables", lambda: schedule_rows(folder))
    _add(rows, folder / "official_models.json", "official models", lambda: official_rows(folder))
    _add(rows, folder / "tokenizer.json", "token ids", lambda: tokenizer_rows(folder))
    return rows


def _run_names(folder: Path, rows: list[Row]) -> list[str]:
    try:
        return list(read_json(folder / "meta.json")["runs"])
    except (ValueError, KeyError, TypeError) as error:
        rows.append(Row("training runs", math.inf, 0.0, f"meta.json: {type(error).__name__}: {error}"))
        return []


def _add(rows: list[Row], file: Path, quantity: str, make: Callable[[], list[Row]]) -> None:
    if not is_recorded(file):
        rows.append(Row.skipped(quantity, f"no {file.name}"))
        return
    try:
        rows.extend(make())
    except Exception as error:  # files that do not fit together are a row out of tolerance, not a crash
        rows.append(Row(quantity, math.inf, 0.0, f"{file.name}: {type(error).__name__}: {first_line(error)}"))
