"""Our numbers against a folder of what the published code computed; what equal means: docs/NUMERICS.md#equal.

`deviation` says how far two figures are apart, `recording` reads a recorded run and repeats it, and each
further file makes the rows of one kind of quantity.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from openslip.errors import UserError
from openslip.verify.deviation import TOLERANCES, Row
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
    """One line per row and the verdict."""
    console = Console()
    width = max(len(row.quantity) for row in rows)
    console.print(f"{'quantity':<{width}}  deviation  tolerance")
    for row in rows:
        style = None if row.ok else "red"
        console.print(row.line(width), style=style, soft_wrap=True, markup=False, highlight=False)
    compared = [row for row in rows if row.deviation is not None]
    within = sum(row.ok for row in compared)
    summary = f"{within} of {len(compared)} quantities within tolerance ({what})"
    console.print(summary, soft_wrap=True, markup=False, highlight=False)
    return 0 if within == len(compared) else 1


def compare(folder: Path, device: str, dtype: str) -> list[Row]:
    """Every quantity that the folder records; nothing about its models, batches and figures is assumed.

    Raises:
        UserError: as `verify`.
    """
    if dtype not in TOLERANCES:
        raise UserError(f"dtype={dtype!r}: expected one of {', '.join(TOLERANCES)}")
    if not device.startswith("cpu") and not torch.cuda.is_available():
        raise UserError(f"device={device!r}: no such device here, since this machine has no CUDA; use cpu")
    if dtype == "tf32" and device.startswith("cpu"):
        raise UserError("dtype='tf32' is a format of CUDA devices; use float32 on the cpu")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the recorded figures of the published code")
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
    if (folder / "meta.json").is_file():
        for name in _run_names(folder, rows):
            _add(rows, folder, f"{name}.npz", name, lambda name=name: run_rows(folder, name, device, dtype))
        _add(rows, folder, "two_ranks.npz", "ranks", lambda: rank_rows(folder, dtype))
        _add(rows, folder, "zero_shot.npz", "zero-shot", lambda: zero_shot_rows(folder, device, dtype))
    else:
        rows.append(Row.skipped("training runs, ranks, zero-shot", "no meta.json"))
    _add(rows, folder, "lr_schedules.json", "learning-rate tables", lambda: schedule_rows(folder))
    _add(rows, folder, "official_models.json", "official models", lambda: official_rows(folder))
    _add(rows, folder, "tokenizer.json", "token ids", lambda: tokenizer_rows(folder))
    return rows


def _run_names(folder: Path, rows: list[Row]) -> list[str]:
    try:
        return list(json.loads((folder / "meta.json").read_text())["runs"])
    except (ValueError, KeyError, TypeError) as error:
        rows.append(Row("training runs", math.inf, 0.0, f"meta.json: {type(error).__name__}: {error}"))
        return []


def _add(rows: list[Row], folder: Path, file: str, quantity: str, make: Callable[[], list[Row]]) -> None:
    if not (folder / file).is_file():
        rows.append(Row.skipped(quantity, f"no {file}"))
        return
    try:
        rows.extend(make())
    except Exception as error:  # a folder that does not fit together is a finding like any other, not a crash
        message = (str(error) or "no message").splitlines()[0]
        rows.append(Row(quantity, math.inf, 0.0, f"{file}: {type(error).__name__}: {message}"))
