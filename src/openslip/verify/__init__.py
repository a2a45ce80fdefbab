"""Compares our numbers with recordings of the published code's, and this device's kernels with the CPU's.

Tolerances: docs/NUMERICS.md#equal. `files` reads recordings, `recording` repeats a recorded run, `deviation` measures
how far apart two values are, `kernels` checks the device, `towers` compares checkpoints of other libraries,
`evaluations` metrics and `family` losses of other libraries, `declip` compares steps of DeCLIP's repository, and each
other file makes the rows of one kind of quantity.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from openslip import terminal
from openslip.errors import UserError, first_line
from openslip.inference.load import choose_device
from openslip.progress import progress
from openslip.terminal import printable, say_wrapped
from openslip.verify.declip import declip_rows, has_recordings
from openslip.verify.deviation import NUMBERS, Row
from openslip.verify.evaluations import evaluation_rows, has_figures
from openslip.verify.family import family_rows, has_losses
from openslip.verify.files import is_recorded, read_json
from openslip.verify.kernels import kernel_rows
from openslip.verify.ranks import rank_rows
from openslip.verify.runs import run_rows
from openslip.verify.tables import official_rows, schedule_rows, tokenizer_rows
from openslip.verify.tower_files import outputs_in
from openslip.verify.towers import tower_rows
from openslip.verify.zero_shot import zero_shot_rows


def verify(folder: Path, device: str, dtype: str) -> int:
    """Print one line per quantity; return 0 if all are within tolerance, else 1.

    Args:
        folder: folder of recordings of the published code, of checkpoints of other libraries with their outputs, of
            metrics of other libraries with their arrays, of recorded steps of DeCLIP's repository, or of losses of
            other libraries with their gradients.
        device: device to check, such as `cpu` or `cuda`.
        dtype: format to compute in, a key of `TOLERANCES`; losses of other libraries are computed in float64.

    Raises:
        UserError: the folder or device does not exist, or the folder has none of the recordings.
    """
    if has_losses(folder):
        dtype = "float64"
    with progress("comparing with the recordings"):
        rows = compare(folder, device, dtype)  # first, because it refuses a device that is not available
    rows_of = rows_function(folder)
    if rows_of is published_rows:
        with progress("comparing kernels with float64"):
            rows += kernel_rows(device, dtype)
    where = "cpu, float64" if rows_of is declip_rows else f"{device}, {dtype}"
    return show(rows, f"{where}; {folder}")


def show(rows: list[Row], what: str) -> int:
    """Print one line per row and a summary; return 0 if all rows are within tolerance, else 1.

    Args:
        rows: rows to print; skipped ones do not count.
        what: what was compared, for the summary.
    """
    console, columns, on_terminal = Console(), terminal.width(), sys.stdout.isatty()
    width = max(len(row.quantity) for row in rows)
    if on_terminal:
        width = min(width, columns - NUMBERS)
    say = partial(console.print, soft_wrap=True, markup=False, highlight=False)
    say(f"{'quantity':<{width}}  deviation  tolerance")
    for row in rows:
        for line in row.lines(width, columns) if on_terminal else [row.line(width)]:
            say(printable(line), style=None if row.ok else "red")
    compared = [row for row in rows if row.deviation is not None]
    within = sum(row.ok for row in compared)
    say_wrapped(f"{within} of {len(compared)} quantities within tolerance ({what})")
    return 0 if within == len(compared) else 1


def compare(folder: Path, device: str, dtype: str) -> list[Row]:
    """Return a row for each quantity recorded in the folder, which also gives the models and batches.

    Raises:
        UserError: as in `verify`, or TF32 is asked for on a CPU.
    """
    if choose_device(device).type == "cpu" and dtype == "tf32":
        raise UserError("dtype='tf32' is a format of CUDA devices; use float32 on the cpu")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected recordings of the published code")
    return rows_function(folder)(folder, device, dtype)


def rows_function(folder: Path) -> Callable[[Path, str, str], list[Row]]:
    """Return the function that compares what a folder holds."""
    if has_losses(folder):
        return family_rows
    if has_figures(folder):
        return evaluation_rows
    if outputs_in(folder):
        return tower_rows
    return declip_rows if has_recordings(folder) else published_rows


def published_rows(folder: Path, device: str, dtype: str) -> list[Row]:
    """Return a row for each quantity of the published code that is recorded in the folder."""
    rows: list[Row] = []

    def add(file: str, quantity: str, make: Callable[[], list[Row]]) -> None:
        if not is_recorded(folder / file):
            rows.append(Row.skipped(quantity, f"no {file}"))
            return
        try:
            rows.extend(make())
        except Exception as error:  # recordings that contradict each other give a row out of tolerance, not a crash
            rows.append(Row(quantity, math.inf, 0.0, f"{file}: {type(error).__name__}: {first_line(error)}"))

    def training() -> list[Row]:
        for name in read_json(folder / "meta.json")["runs"]:
            add(f"{name}.npz", name, lambda name=name: run_rows(folder, name, device, dtype))
        add("two_ranks.npz", "ranks", lambda: rank_rows(folder, dtype))
        add("zero_shot.npz", "zero-shot", lambda: zero_shot_rows(folder, device, dtype))
        return []

    add("meta.json", "training runs, ranks, zero-shot", training)
    add("lr_schedules.json", "learning-rate tables", lambda: schedule_rows(folder))
    add("official_models.json", "official models", lambda: official_rows(folder))
    add("tokenizer.json", "token ids", lambda: tokenizer_rows(folder))
    if all(row.deviation is None for row in rows):
        raise UserError(
            f"{folder}: holds none of the recordings (meta.json, clip.npz, tokenizer.json, ...), no NAME_io.npz, "
            "no metrics.json and no one_rank.npz"
        )
    return rows
