"""Compares our metrics, k-NN, retrieval and linear probe with figures that other libraries computed of the same arrays.

A folder holds `metrics.json`, whose `metrics` are sections of figures; the arrays they were computed from in
`classification.npz`, `probe.npz` and `retrieval.npz`; and the shapes of these arrays in `arrays.json`.
docs/EVALUATION.md describes them.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from openslip.errors import UserError, first_line
from openslip.verify.classification import binary, classification, multilabel, prompts
from openslip.verify.deviation import Arrays, Row
from openslip.verify.files import read_arrays, read_json
from openslip.verify.probes import adamw_probe, knn, linear_probe
from openslip.verify.recorded_figures import FIGURE, Computed, Section, array_row, figure_row
from openslip.verify.recorded_retrieval import retrieval
from openslip.verify.recording import DTYPES
from openslip.verify.towers import EXACT, UNKNOWN

FIGURES = "metrics.json"
SHAPES = "arrays.json"
# The file and the computation of each section; names of retrieval sections go on with the name of their arrays.
SECTIONS: dict[str, tuple[str, Callable[[Section], Computed]]] = {
    "classification": ("classification.npz", classification),
    "binary": ("classification.npz", binary),
    "multilabel": ("classification.npz", multilabel),
    "prompts": ("classification.npz", prompts),
    "linear_probe": ("probe.npz", linear_probe),
    "linear_probe_adamw": ("probe.npz", adamw_probe),
    "knn": ("probe.npz", knn),
    "retrieval": ("retrieval.npz", retrieval),
}
INPUTS = ("logits", "targets", "_scores", "_features", "image_of_text")  # how names of arrays end that are only read
SETTINGS = ("k", "temperature", "lr", "weight_decay", "epochs", "batch", "schedule")  # in the sections of metrics.json
WRONG = "a wrong answer, which was recorded to show the difference"
_ADAMW = "no evaluation of ours trains a probe with AdamW"
# Why something recorded is not compared, by the end of its name.
NOT_COMPARED = {
    "iterations": "a count of the recording's own solver",
    "largest_difference": "rounding of one of the recorded values",
    "adamw/init_weight": _ADAMW,
    "adamw/init_bias": _ADAMW,
    "adamw/weight": _ADAMW,
    "adamw/bias": _ADAMW,
    "_if_scored_by_logit_1_alone": WRONG,
    "_if_prompts_not_normalised_first": WRONG,
    "largest_classifier_difference_then": WRONG,
    "_not_used": WRONG,
}


def has_figures(folder: Path) -> bool:
    """Whether a folder holds figures that other libraries computed of arrays beside them."""
    return (folder / FIGURES).is_file()


def evaluation_rows(folder: Path, device: str, dtype: str) -> list[Row]:
    """Return a row for each recorded figure and array, and one for each file or section that cannot be read.

    Raises:
        UserError: the format is coarser than float32, `metrics.json` is not readable, or nothing can be compared.
    """
    if dtype not in EXACT:
        raise UserError(f"dtype={dtype!r} is too coarse to compare metrics, which count; use float32")
    rows: list[Row] = []
    arrays: dict[str, Arrays] = {}
    for file in dict.fromkeys(file for file, _ in SECTIONS.values()):
        try:
            arrays[file] = read_arrays(folder / file)
        except FileNotFoundError:
            rows.append(Row.skipped(file, "no such file"))
        except Exception as error:  # the other files are compared all the same
            rows.append(failure(file, error))
    rows += shape_rows(folder, arrays)
    compared = set()
    for name, figures in read_figures(folder / FIGURES).items():
        section_rows, names = compare(name, figures, arrays, device, dtype)
        rows += section_rows
        compared |= names
    for file, values in arrays.items():
        for key in sorted(values.keys() - {key for of_file, key in compared if of_file == file}):
            if not key.endswith(INPUTS):
                rows.append(Row.skipped(f"{file}: {key}", reason(key)))
    if all(row.deviation is None for row in rows):
        raise UserError(f"{folder}: {FIGURES} holds nothing that can be compared with the arrays beside it")
    return rows


def read_figures(path: Path) -> dict[str, Any]:
    """Return the sections of recorded figures by name.

    Raises:
        UserError: the file is no JSON, or has no object `metrics` of objects.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} cannot be read as JSON ({first_line(error)})") from error
    sections = content.get("metrics") if isinstance(content, dict) else None
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise UserError(f"{path.name} has no object `metrics` with an object for each kind of figure")
    return sections


def compare(
    name: str, figures: dict[str, Any], arrays: Mapping[str, Arrays], device: str, dtype: str
) -> tuple[list[Row], set[tuple[str, str]]]:
    """Return the rows of a section, and the file and name of each array that is compared in them."""
    known = name if name in SECTIONS else name.partition("_")[0]
    recorded = {key: value for key, value in flattened(figures) if key.split("/")[-1] not in SETTINGS}
    if known not in SECTIONS:
        return [Row.skipped(f"{name}: {key}", UNKNOWN) for key in recorded], set()
    file, compute = SECTIONS[known]
    if file not in arrays:
        return [Row.skipped(f"{name}: {key}", f"no {file}") for key in recorded], set()
    try:
        ours = compute(Section(name, figures, arrays[file], device, DTYPES[dtype]))
    except Exception as error:  # the other sections are compared all the same
        return [failure(name, error)], set()
    rows = []
    for key, value in recorded.items():
        label = f"{name}: {key}"
        is_compared = key in ours.figures and isinstance(value, int | float)
        rows.append(figure_row(label, value, ours.figures[key]) if is_compared else Row.skipped(label, reason(key)))
    kept = {key: value for key, value in ours.arrays.items() if key in arrays[file]}
    rows += [array_row(f"{file}: {key}", arrays[file][key], value) for key, value in kept.items()]
    return rows, {(file, key) for key in kept}


def flattened(figures: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each figure and its name, `GROUP/NAME` in a group."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", inner) for key, inner in flattened(value))
        else:
            yield name, value


def shape_rows(folder: Path, arrays: Mapping[str, Arrays]) -> list[Row]:
    """Compare the shapes and types of the arrays with those in `arrays.json`; there is no row without this file."""
    if not (folder / SHAPES).is_file():
        return [Row.skipped(SHAPES, "no such file")]
    try:
        stated = read_json(folder / SHAPES)
        wrong = [
            f"{file}: {name}"
            for file, values in arrays.items()
            for name in values.keys() | stated[file].keys()
            if name not in values or stated[file].get(name) != [[*values[name].shape], str(values[name].dtype)]
        ]
    except Exception as error:
        return [failure(SHAPES, error)]
    note = f"differ: {', '.join(sorted(wrong)[:3])}" if wrong else "shapes and types as stated"
    return [Row(SHAPES, float(len(wrong)), 0.0, note)]


def reason(key: str) -> str:
    """Return why a recorded figure or array is not compared."""
    return next((why for end, why in NOT_COMPARED.items() if key.endswith(end)), UNKNOWN)


def failure(label: str, error: Exception) -> Row:
    """Return the row of what cannot be computed, which is out of tolerance."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return Row(label, math.inf, FIGURE, f"{kind}{first_line(error)}")
