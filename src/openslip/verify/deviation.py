"""Deviations of our values from recorded ones, and their tolerances."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from openslip.terminal import wrapped

Arrays = dict[str, np.ndarray]
T = TypeVar("T")
U = TypeVar("U")

_LEARNING_RATE = 1e-9
ZERO_GRADIENT = 1e-10
# A small tensor's gradient has rounding errors on the scale of the whole model's gradient, so its deviation is divided
# by at least this fraction of the model's gradient norm.
_GRADIENT_FLOOR = 1e-4
# Four standard deviations, times two because another implementation may round twice as much.
_NOISE_FACTOR = 8.0


@dataclass(frozen=True)
class Tolerances:
    """Largest relative deviation from the recordings, per kind of quantity.

    A float32 recording itself has a rounding error, about as large as the distance between our float32 and float64
    runs for the same quantity. If eight times that distance is more than the stated tolerance, the tolerance cannot be
    met, and that value replaces it, up to a limit. For coarser formats the distance is scaled by their rounding.

    Attributes:
        output: model outputs of one step.
        loss: losses of one step.
        gradient: gradients of one step.
        trajectory: losses along all steps; None if they are not compared.
        weight: final weights and statistics; None if they are not compared.
        accuracy_samples: number of samples of a batch whose prediction may flip between right and wrong.
        rounding: unit roundoff of the format, relative to float32's.
        limit: largest tolerance that rounding can justify.
    """

    output: float
    loss: float
    gradient: float
    trajectory: float | None
    weight: float | None
    accuracy_samples: int
    rounding: float
    limit: float

    def allow(self, tolerance: float, noise: float) -> float:
        """Return the larger of the stated tolerance and eight times the rounding `noise` of this quantity, limited."""
        return max(tolerance, min(_NOISE_FACTOR * noise * self.rounding, self.limit))

    def accuracy(self, batch: int) -> float:
        """Return the largest deviation of an accuracy, in per cent: samples that may flip, plus float32 rounding."""
        return 1e-3 + self.accuracy_samples * 100 / batch


def _coarse(bits: int) -> Tolerances:
    # A forward pass rounds an activation about ten times; errors of random sign add up to a few units. In twenty steps
    # of AdamW, which divides by the gradient's size, they grow to the size of the updates.
    u = 2.0**-bits
    return Tolerances(8 * u, 8 * u, 8 * u, None, None, accuracy_samples=2, rounding=u / 2.0**-24, limit=0.25)


# The limit is a tenth of 1 %, so that an error of 1 % is always seen.
_FLOAT32 = Tolerances(1e-5, 1e-6, 1e-5, 1e-4, 1e-5, accuracy_samples=0, rounding=1.0, limit=1e-3)
# The recordings are float32, so float64 results are no closer to them than float32 results.
TOLERANCES = {"float64": _FLOAT32, "float32": _FLOAT32, "tf32": _coarse(11), "bfloat16": _coarse(8)}
NUMBERS = 2 + 9 + 2 + 9 + 2 + 7  # width of a row's columns between its quantity and its note
TOO_COARSE = "too coarse a format to compare after AdamW; float32 does"


@dataclass(frozen=True)
class Row:
    """One line of the table; its deviation is None if there is nothing to compare."""

    quantity: str
    deviation: float | None
    tolerance: float
    note: str

    @staticmethod
    def skipped(quantity: str, why: str) -> "Row":
        return Row(quantity, None, 0.0, why)

    @property
    def ok(self) -> bool:
        return self.deviation is None or self.deviation <= self.tolerance

    def line(self, width: int) -> str:
        """Format the row, with the quantity in a column of `width` characters."""
        if self.deviation is None:
            return f"{self.quantity:<{width}}  {'':9}  {'':9}  skipped  {self.note}"
        verdict = f"{self.deviation:9.2e}  {self.tolerance:9.2e}  {'ok' if self.ok else 'OUT':7}"
        return f"{self.quantity:<{width}}  {verdict}  {self.note}".rstrip()

    def lines(self, width: int, columns: int) -> list[str]:
        """Return the row as lines of at most `columns` characters; if there are several, the note is below the row.

        Args:
            width: width of the column of quantities, at most `columns - NUMBERS`; longer quantities are wrapped.
            columns: width of the terminal.
        """
        if len(line := self.line(width)) <= columns:
            return [line]
        *above, last = wrapped(self.quantity, width)
        numbers = replace(self, quantity=last, note="").line(width)
        note = wrapped(f"    {self.note}", columns, indent=4) if self.note else []
        return [*above, numbers.rstrip(), *note]


@dataclass(frozen=True)
class Part:
    """One of several comparisons, of which a row shows the worst."""

    label: str
    deviation: float
    tolerance: float

    @property
    def excess(self) -> float:
        if math.isnan(self.deviation):
            return math.inf
        if self.tolerance == 0:
            return math.inf if self.deviation else 0.0
        return self.deviation / self.tolerance


def exactly(label: str, difference: int) -> Part:
    """Return a comparison of counts, whose difference must be 0."""
    return Part(label, float(difference), 0.0)


@dataclass(frozen=True)
class Trio(Generic[T]):
    """A quantity in the requested format, and on the CPU in float32 and float64, whose distance shows its rounding."""

    ours: T
    single: T
    exact: T

    def each(self, take: Callable[[T], U]) -> "Trio[U]":
        """Apply a function to each of the three."""
        return Trio(take(self.ours), take(self.single), take(self.exact))


def worst(quantity: str, parts: Iterable[Part], note: str = "") -> Row:
    """Return the row of the part whose deviation is largest relative to its own tolerance."""
    parts = list(parts)
    if not parts:
        return Row.skipped(quantity, "none recorded")
    part = max(parts, key=lambda part: part.excess)
    deviation = math.inf if math.isnan(part.deviation) else part.deviation
    label = f"worst of {len(parts)}: {part.label}" if len(parts) > 1 else part.label
    return Row(quantity, deviation, part.tolerance, "; ".join(filter(None, (label, note))))


def norm(x: np.ndarray | np.floating) -> float:
    """Return the Euclidean norm of all elements, computed in float64."""
    return float(np.sqrt(np.square(x, dtype=np.float64).sum()))


def relative(ours: np.ndarray, recorded: np.ndarray) -> float:
    """Return the norm of the difference divided by the norm of the recorded array; infinite if shapes differ."""
    if ours.shape != recorded.shape:
        return math.inf
    difference, scale = norm(ours - recorded.astype(np.float64)), norm(recorded)
    if scale == 0:
        return math.inf if difference else 0.0
    return difference / scale


def rate_part(label: str, ours: float, recorded: float) -> Part:
    """Return a comparison of a learning rate with the recorded one, as a relative deviation."""
    return Part(label, abs(ours - recorded) / (abs(recorded) or 1.0), _LEARNING_RATE)


def same_names(label: str, ours: Iterable[str], recorded: Iterable[str]) -> Part:
    """Return a comparison of two sets of names, whose deviation is the number of names in only one of them."""
    difference = sorted(set(ours) ^ set(recorded))
    return exactly(f"{label}: {', '.join(difference[:3]) or 'the same names'}", len(difference))


def same_shapes(label: str, ours: Mapping[str, Any], recorded: Mapping[str, Any]) -> Part:
    """Return a comparison of names and shapes; the values are arrays, tensors or shapes."""
    named = ([f"{name} {list(getattr(x, 'shape', x))}" for name, x in arrays.items()] for arrays in (ours, recorded))
    return same_names(label, *named)


def term_parts(
    recorded: Mapping[str, float],
    terms: Trio[dict[str, float]],
    tolerances: Tolerances,
    tolerance: float,
    batch: int,
    *,
    noise: Mapping[str, float],
    where: str = "",
    scales: Mapping[str, float] | None = None,
) -> list[Part]:
    """Return comparisons of losses and accuracies.

    Args:
        recorded: recorded values by name; the accuracies, whose names end in `_acc`, are in per cent.
        terms: our values, by the same names.
        tolerances: tolerances of the format.
        tolerance: relative tolerance of the losses.
        batch: number of samples that an accuracy is computed from.
        noise: absolute rounding error of each loss, estimated beforehand, because the distance between float32 and
            float64 of a single value may be small by chance.
        where: text appended to the names, such as ` at step 3`.
        scales: lower bound, by name, of the size that a loss's deviation is divided by; None for no bound.
    """
    parts = []
    for name, value in recorded.items():
        deviation = abs(terms.ours[name] - value)
        rounding = abs(terms.single[name] - terms.exact[name])
        if name.endswith("_acc"):
            # Rounding flips a prediction only where two candidates nearly tie; float32 and float64 differ there too.
            parts.append(Part(name + where, deviation, tolerances.accuracy(batch) + rounding))
        else:
            scale = max(abs(value), scales[name] if scales else 0.0) or 1.0
            rounding = max(rounding, noise.get(name, 0.0)) / scale
            parts.append(Part(name + where, deviation / scale, tolerances.allow(tolerance, rounding)))
    return parts


def term_rows(label: str, parts: list[Part], losses: str = "loss terms") -> list[Row]:
    """Return one row of the losses and one of the accuracies."""
    return [
        worst(f"{label}: {losses}", [part for part in parts if "_acc" not in part.label]),
        worst(f"{label}: accuracies (per cent)", [part for part in parts if "_acc" in part.label]),
    ]


def array_parts(
    recorded: Arrays,
    trio: Trio[Arrays],
    compared: Arrays,
    tolerances: Tolerances,
    tolerance: float,
    *,
    floor: float = 0.0,
    counted: Collection[str] | None = None,
) -> tuple[Part, list[Part]]:
    """Return a comparison of all arrays as one vector, and one comparison for each array.

    Args:
        recorded: recorded arrays by name.
        trio: our arrays, by the same names.
        compared: boolean masks by name, true for the elements to compare.
        tolerances: tolerances of the format.
        tolerance: relative tolerance of these arrays.
        floor: an array's deviation is divided by its norm, or by this fraction of the whole vector's norm if that is
            larger.
        counted: names of the arrays that form the vector; None for all.
    """
    measured = {}  # for each array: its norm, the norm of our deviation, the norm of rounding
    for name, array in recorded.items():
        values = array, trio.ours[name] - array, trio.single[name] - trio.exact[name]
        measured[name] = [norm(np.where(compared[name], value, 0.0)) for value in values]
    vector = [norms for name, norms in measured.items() if counted is None or name in counted]
    size, deviation, noise = np.sqrt(np.square(np.array(vector).reshape(-1, 3)).sum(axis=0)).tolist()
    size = size or 1.0
    whole = Part(f"norm {size:.4g}", deviation / size, tolerances.allow(tolerance, noise / size))
    parts = []
    for name, (own, difference, rounding) in measured.items():
        if compared[name].any():
            scale = max(own, floor * size) or 1.0
            noises = rounding / scale, noise / size if floor else 0.0
            parts.append(Part(name, difference / scale, tolerances.allow(tolerance, max(noises))))
    return whole, parts


def gradient_rows(label: str, recorded: Arrays, gradients: Trio[Arrays], tolerances: Tolerances) -> list[Row]:
    """Return rows of the model's gradient: as one vector, by tensor, and of elements that are zero but for rounding."""
    if not recorded:
        return [Row.skipped(f"{label}: gradients", "none recorded")]
    if (names := same_shapes("gradients", gradients.ours, recorded)).deviation:
        return [worst(f"{label}: gradients", [names])]
    zero = {name: np.abs(gradients.exact[name]) < ZERO_GRADIENT for name in recorded}
    nonzero = {name: ~mask for name, mask in zero.items()}
    tolerance = tolerances.gradient
    whole, tensors = array_parts(recorded, gradients, nonzero, tolerances, tolerance, floor=_GRADIENT_FLOOR)
    total = math.hypot(*map(norm, recorded.values()))
    zeros = [
        Part(name, norm(np.where(mask, gradients.ours[name] - recorded[name], 0.0)) / total, tolerance)
        for name, mask in zero.items()
        if mask.any()
    ]
    count = sum(int(mask.sum()) for mask in zero.values())
    note = f"{count} elements below {ZERO_GRADIENT:g} in float64, against the model's norm"
    return [
        worst(f"{label}: gradient of the model", [whole]),
        worst(f"{label}: gradients by tensor", tensors),
        worst(f"{label}: zero gradients", zeros, note),
    ]
