"""What other libraries computed from recorded arrays, section by section, and our values of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openslip.verify.deviation import Arrays, Row
from openslip.verify.towers import deviation

# Largest deviations, relative to the largest recorded absolute value. Some figures were recorded in float32; one sample
# more or less would change any of them by more than this as long as there are fewer than a million.
FIGURE = 1e-6
FLOAT32_ARRAY = 1e-5


@dataclass(frozen=True)
class Section:
    """A section of `metrics.json` and the arrays that its figures were computed from.

    Attributes:
        name: name of the section.
        figures: recorded figures and settings; some sections hold several groups of them by name.
        arrays: arrays of the section's file.
        device: device to compute on.
        dtype: format to compute in.
    """

    name: str
    figures: Mapping[str, Any]
    arrays: Arrays
    device: str
    dtype: torch.dtype

    def tensor(self, key: str) -> Tensor:
        """Return an array on the device; one of floating-point numbers in the format to compute in."""
        values = torch.from_numpy(self.arrays[key]).to(self.device)
        return values.to(self.dtype) if values.is_floating_point() else values


@dataclass(frozen=True)
class Ours:
    """Our value of a recorded figure or array.

    Attributes:
        value: the figure or array.
        limit: its largest accepted deviation.
        note: text to append to the note of its row.
        by_element: whether each element's deviation is relative to that element, not to the largest of the array.
    """

    value: float | np.ndarray
    limit: float = FIGURE
    note: str = ""
    by_element: bool = False


@dataclass(frozen=True)
class Computed:
    """Our values of a section: figures by name, `GROUP/NAME` in a section of groups, and arrays by name."""

    figures: dict[str, Ours]
    arrays: dict[str, Ours] = field(default_factory=dict)


def figure_row(label: str, recorded: float, ours: Ours) -> Row:
    """Return the row of a recorded number; two that are both NaN agree."""
    value = float(ours.value)
    apart = 0.0 if math.isnan(recorded) and math.isnan(value) else deviation(np.array(value), np.array(recorded))
    return Row(label, apart, ours.limit, f"recorded {recorded:.9g}, ours {value:.9g}{ours.note}")


def array_row(label: str, recorded: np.ndarray, ours: Ours) -> Row:
    """Return the row of a recorded array; elements that are NaN in both agree."""
    value = np.asarray(ours.value)
    note = f"array {[*recorded.shape]}"
    if value.shape != recorded.shape:
        note = f"{note}, ours {[*value.shape]}"
    elif (neither := np.isnan(value) & np.isnan(recorded)).any():
        kept = Ours(np.where(neither, 0, value), ours.limit, ours.note, ours.by_element)
        return array_row(label, np.where(neither, 0, recorded), kept)
    elif ours.by_element:  # two zeros agree, and a zero and another number do not
        both = np.where(value == recorded, 1.0, value), np.where(value == recorded, 1.0, recorded)
        with np.errstate(divide="ignore"):
            value, recorded = both[0] / both[1], np.ones_like(both[1])
    return Row(label, deviation(value, recorded), ours.limit, f"{note}{ours.note}")
