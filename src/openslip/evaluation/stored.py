"""Files of results: one JSON per checkpoint and evaluation, written whole as soon as the evaluation ends.

`EVALUATION.json` says what was evaluated and how, and `EVALUATION.npz` beside it holds the arrays for the report. The
JSON is written last, so an evaluation that was interrupted has none.
"""

import json
import re
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from openslip.arrays import write_arrays
from openslip.durable import needed, write_text
from openslip.errors import UserError
from openslip.regular_file import regular_file

FOLDER = "evaluations"  # in a run's folder
SUFFIX = "-evaluations"  # end of the name of a folder beside a checkpoint file, after the file's name
# Keys of an evaluation's config that change no metric.
NO_RESULT = ("title", "batch_size", "num_workers", "every_n_epochs", "every_n_steps")
KEYS = {"evaluation": str, "checkpoint": str, "metrics": dict, "headline_metric": str, "config": dict, "notes": dict}


def folder_of(checkpoint: str, file: Path | None) -> Path:
    """Return the folder of a checkpoint's results.

    That is `RUN/evaluations/STEM` for a checkpoint of a run, `NAME-evaluations` beside any other file, and
    `evaluations` in any other folder. For the name of a published checkpoint and the address of a model in another
    library, it is `NAME-evaluations` in the current folder, with unusual characters of the name replaced by `-`.

    Args:
        checkpoint: the checkpoint as the user named it.
        file: the file or folder that was read.
    """
    if file is None or not Path(checkpoint).exists():
        return Path(re.sub(r"[^\w.-]+", "-", checkpoint) + SUFFIX)
    if file.is_dir():
        return file / FOLDER
    if file.is_symlink() and file.resolve().parent == file.parent.resolve():
        file = file.with_name(file.resolve().name)  # `last.ckpt` means another checkpoint later
    run = file.absolute().parent.parent
    if file.absolute().parent.name == "checkpoints" and (run / "config.yaml").is_file():
        return file.parent.parent / FOLDER / file.stem
    return file.with_name(file.name + SUFFIX)  # with its suffix: model.pt and model.safetensors are two models


def write(folder: Path, record: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a result, whole or not at all.

    Args:
        folder: folder of the checkpoint's results.
        record: content of the JSON, with the name of the evaluation.
        arrays: arrays of the evaluation.

    Raises:
        UserError: the file cannot be written.
    """
    path = folder / f"{record['evaluation']}.json"
    with needed(path, refusal=UserError, advice="output=FILE names another place"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # first, because its arrays are replaced
        path.with_suffix(".npz").unlink(missing_ok=True)  # a result never stands beside the arrays of another
        if arrays:
            write_arrays(path.with_suffix(".npz"), arrays)
        try:
            write_text(path, json.dumps(record, indent=1) + "\n")
        except FileNotFoundError:
            if not path.exists():  # else another process has written it at the same time
                raise


def differences(folder: Path, record: dict[str, Any]) -> str:
    """Return the settings in which a stored result of the same evaluation differs from a new one, with its values."""
    former = read(folder / f"{record['evaluation']}.json")
    if former is None:
        return ""
    before, after = (flat(result["config"]) for result in (former, record))
    keys = [key for key in before | after if key not in NO_RESULT and before.get(key) != after.get(key)]
    return ", ".join(f"{key}={shortened(before.get(key))}" for key in keys[:3])


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested config by their dotted keys."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


def shortened(value: Any) -> str:
    """Return a value as text of at most 40 characters."""
    return textwrap.shorten(str(value), 40, placeholder=" ...")


def read(path: Path) -> dict[str, Any] | None:
    """Read a result; None if the file is missing, damaged or another kind of JSON."""
    with suppress(OSError, ValueError, RecursionError, UserError):
        record = json.loads(regular_file(path).read_bytes())
        if isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in KEYS.items()):
            numbers = record["metrics"].values()
            if all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
                return record
    return None


def read_all(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the results in a folder, in the order of their names."""
    for path in sorted(folder.glob("*.json")):
        if (record := read(path)) is not None:
            yield record


def headline(record: dict[str, Any]) -> tuple[str, float] | None:
    """Return the name and the value of the metric that stands for a result; None if it has no metrics."""
    metrics = record["metrics"]
    if record["headline_metric"] in metrics:
        return record["headline_metric"], float(metrics[record["headline_metric"]])
    return next(((name, float(value)) for name, value in metrics.items()), None)
