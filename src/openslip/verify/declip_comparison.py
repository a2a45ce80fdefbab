"""Compares results with those of DeCLIP's repository, by their recorded names; one row per kind of result."""

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from openslip.verify.deviation import Arrays, Part, Row, exactly, norm, worst

TOLERANCE = 1e-7  # docs/NUMERICS.md#equal
GRADIENT_FLOOR = 1e-4  # as in deviation.py: a small tensor's gradient has rounding errors on the scale of all gradients
KINDS = {
    **{"out": "outputs", "loss": "loss terms", "grad": "gradients", "queue": "queue of neighbours"},
    **{"after": "batch-norm statistics", "tower": "towers"},
}
INPUTS = ("in", "weights")
# Recorded values that have no counterpart in ours.
NOT_OURS = (
    ("nt_xent_losses", "nt_xent_losses (logged only, in no total)"),
    ("top5", "top5"),
    ("predictor_sim.bn3", "predictor_sim.bn3 (unused)"),
)


def compared(label: str, recorded: Arrays, ours: Arrays) -> list[Row]:
    """Return a row for each kind of result, and rows that name the recorded results that were not compared."""
    groups: dict[str, Arrays] = defaultdict(dict)
    left_out: dict[str, None] = {}
    for key, array in recorded.items():
        kind = key.split("/")[1]
        without = next((name for part, name in NOT_OURS if part in key), None)
        if key.startswith("weights/") or kind in INPUTS or (kind == "loss" and key not in ours and not array.any()):
            continue  # an input, or a term that is zero because the method has no such term
        if kind not in KINDS:
            left_out[f"{kind} (a kind that is not known)"] = None
        elif without is not None:
            left_out[without] = None
        else:
            groups[KINDS[kind]][key] = array
    rows = [worst(f"{label}: {kind}", parts(arrays, ours)) for kind, arrays in groups.items()]
    return [*rows, *(Row.skipped(f"{label}: {name}", "not part of our method") for name in left_out)]


def parts(recorded: Arrays, ours: Mapping[str, np.ndarray]) -> list[Part]:
    """Return a comparison of each array; integers must be equal."""
    size = math.hypot(*(norm(array) for key, array in recorded.items() if "/grad/" in key))
    return [
        part(key, array, ours, GRADIENT_FLOOR * size if "/grad/" in key else 0.0) for key, array in recorded.items()
    ]


def part(key: str, array: np.ndarray, ours: Mapping[str, np.ndarray], floor: float) -> Part:
    if key not in ours or ours[key].size != array.size:
        return Part(f"{key} is missing or has another shape", math.inf, TOLERANCE)
    value, expected = ours[key].reshape(array.shape), array.astype(np.float64)
    both = np.isnan(value) & np.isnan(expected)  # published losses are NaN if a rank has no masked word
    value, expected = (np.where(both, 0.0, x) for x in (value, expected))
    difference = value - expected
    if array.dtype.kind == "i":
        return exactly(key, int(np.count_nonzero(difference)))
    scale = max(norm(expected), floor)
    return Part(key, norm(difference) / (scale or 1.0), TOLERANCE)
