"""How far our values are from recorded ones, and how far they may be."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

Arrays = dict[str, np.ndarray]
T = TypeVar("T")
U = TypeVar("U")

_LEARNING_RATE = 1e-9
ZERO_GRADIENT = 1e-10
# A small tensor's gradient carries rounding of the model's size: a share of that is the least to measure by.
_GRADIENT_FLOOR = 1e-4
# Four standard deviations, and another implementation may round twice as much.
_NOISE_FACTOR = 8.0


@dataclass(frozen=True)
class Tolerances:
    """Largest relative deviation from the recordings, per kind of quantity.

    A float32 recording is itself off the truth, by as much as our own float32 run is off our float64 run of
    the very same quantity. Where eight times that distance is more than the stated tolerance, nobody can meet
    the tolerance and the distance counts instead, up to a limit; coarser formats scale it by their rounding.

    Attributes:
        output, loss, gradient: after one step.
        trajectory, weight: along all steps; None: not compared.
        accuracy_samples: how many samples of a batch may change sides.
        rounding: of the format, in units of float32's.
        limit: what rounding may excuse at most.
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
        """The stated tolerance, or what rounding does to this quantity where that is more."""
        return max(tolerance, min(_NOISE_FACTOR * noise * self.rounding, self.limit))

    def accuracy(self, batch: int) -> float:
        """Largest deviation in per cent: so many samples of the batch, and the float32 rounding of the accuracy."""
        return 1e-3 + self.accuracy_samples * 100 / batch


def _coarse(bits: int) -> Tolerances:
    # A pass rounds an activation some ten times on its way; errors of random sign add up to a few units.
    # Twenty steps of AdamW, which divides by the gradient's size, carry that to the size of the updates.
    u = 2.0**-bits
    return Tolerances(8 * u, 8 * u, 8 * u, None, None, accuracy_samples=2, rounding=u / 2.0**-24, limit=0.25)


# The limit is a tenth of 1 %, so that an error of 1 % is always seen.
_FLOAT32 = Tolerances(1e-5, 1e-6, 1e-5, 1e-4, 1e-5, accuracy_samples=0, rounding=1.0, limit=1e-3)
# The recordings are float32: float64 comes no closer to them.
TOLERANCES = {"float64": _FLOAT32, "float32": _FLOAT32, "tf32": _coarse(11), "bfloat16": _coarse(8)}
TOO_COARSE = "too coarse a format to compare after AdamW; float32 does"


@dataclass(frozen=True)
class Row:
    """One line of the table; its deviation is None where nothing was recorded to compare with."""

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
        """The quantity in a column of this width, its deviation, its tolerance and a note."""
        if self.deviation is None:
            return f"{self.quantity:<{width}}  {'':9}  {'':9}  skipped  {self.note}"
        verdict = f"{self.deviation:9.2e}  {self.tolerance:9.2e}  {'ok' if self.ok else 'OUT':7}"
        return f"{self.quantity:<{width}}  {verdict}  {self.note}".rstrip()


@dataclass(frozen=True)
class Part:
    """One of the comparisons of which a row shows the worst."""

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
    """A comparison of counts, which must not differ at all."""
    return Part(label, float(difference), 0.0)


@dataclass(frozen=True)
class Trio(Generic[T]):
    """A quantity in the format asked for, and on the CPU in float32 and float64 to know its rounding."""

    ours: T
    single: T
    exact: T

    def each(self, take: Callable[[T], U]) -> "Trio[U]":
        """The trio of what a function gives of each."""
        return Trio(take(self.ours), take(self.single), take(self.exact))


def worst(quantity: str, parts: Iterable[Part], note: str = "") -> Row:
    """The row of the part that is furthest out, measured in its own tolerance."""
    parts = list(parts)
    if not parts:
        return Row.skipped(quantity, "none recorded")
    part = max(parts, key=lambda part: part.excess)
    deviation = math.inf if math.isnan(part.deviation) else part.deviation
    label = f"worst of {len(parts)}: {part.label}" if len(parts) > 1 else part.label
    return Row(quantity, deviation, part.tolerance, "; ".join(filter(None, (label, note))))


def norm(x: np.ndarray | np.floating) -> float:
    """Square root of the sum of squares, in float64."""
    return float(np.sqrt(np.square(x, dtype=np.float64).sum()))


def relative(ours: np.ndarray, recorded: np.ndarray) -> float:
    """Norm of the difference over the norm of the recorded array."""
    if ours.shape != recorded.shape:
        return math.inf
    difference, scale = norm(ours - recorded.astype(np.float64)), norm(recorded)
    if scale == 0:
        return math.inf if difference else 0.0
    return difference / scale


def rate_part(label: str, ours: float, recorded: float) -> Part:
    """A learning rate, relative to the recorded one."""
    return Part(label, abs(ours - recorded) / (abs(recorded) or 1.0), _LEARNING_RATE)


def same_names(label: str, ours: Iterable[str], recorded: Iterable[str]) -> Part:
    """A comparison of two sets of names by how many only one of them has."""
    difference = sorted(set(ours) ^ set(recorded))
    return exactly(f"{label}: {', '.join(difference[:3]) or 'the same names'}", len(difference))


def same_shapes(label: str, ours: Mapping[str, Any], recorded: Mapping[str, Any]) -> Part:
    """A comparison of the names and shapes of arrays, or of recorded shapes."""
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
    """Comparisons of losses and of accuracies.

    Args:
        recorded: values by name; the accuracies are in per cent.
        terms: ours, by the same names.
        tolerances: of the format.
        tolerance: of these losses, relative.
        batch: number of samples, of which accuracies are shares.
        noise: what rounding does to each loss; the distance of a single value may be small by luck.
        where: added to the names.
        scales: a loss is measured against its size, or this where it is more.
    """
    parts = []
    for name, value in recorded.items():
        deviation = abs(terms.ours[name] - value)
        rounding = abs(terms.single[name] - terms.exact[name])
        if name.endswith("_acc"):
            # Rounding changes sides only where two candidates tie; there float32 and float64 differ as well.
            parts.append(Part(name + where, deviation, tolerances.accuracy(batch) + rounding))
        else:
            scale = max(abs(value), scales[name] if scales else 0.0) or 1.0
            rounding = max(rounding, noise.get(name, 0.0)) / scale
            parts.append(Part(name + where, deviation / scale, tolerances.allow(tolerance, rounding)))
    return parts


def term_rows(label: str, parts: list[Part], losses: str = "loss terms") -> list[Row]:
    """A row of the losses and one of the accuracies."""
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
    """Comparisons of arrays as one vector, and of each by itself.

    Args:
        recorded: by name.
        trio: ours, by the same names.
        compared: per name, which elements count.
        tolerances: of the format.
        tolerance: of these arrays.
        floor: an array is measured against its norm, or this share of the whole vector's where that is more.
        counted: the arrays that make the vector; None: all.
    """
    measured = {}  # of each array: its norm, that of our deviation, that of rounding
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
    """The model's gradient as one vector, tensor by tensor, and elements that are zero but for rounding."""
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
