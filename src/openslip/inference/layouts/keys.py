"""Renames the weights of a foreign layout, and fits them to a model without leaving any out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from openslip.errors import UserError
from openslip.inference.architecture import load_weights

T = TypeVar("T")
Table = Sequence[tuple[re.Pattern[str], str]]

SHOWN = 5  # names of weights that an error shows of each kind


def table(pairs: Iterable[tuple[str, str]]) -> Table:
    """Compile pairs of a foreign prefix and ours; in a name, the first foreign prefix that fits is replaced by ours.

    A prefix that ends in `.` or `_` matches all names that begin with it; any other must equal the name. `{n}` matches
    a number, which is copied.
    """
    return [(_pattern(foreign), ours) for foreign, ours in pairs]


def translate(name: str, names: Table) -> str | None:
    """Return the new name of a weight, or None if the table does not have it."""
    for pattern, target in names:
        if match := pattern.fullmatch(name):
            return target.replace("{n}", match.groupdict().get("n", "")) + match["rest"]
    return None


def rename(weights: Mapping[str, T], names: Table) -> dict[str, T]:
    """Rename weights; a weight keeps its name if the table has no new one, or if the new one is already taken.

    `fit` then reports the name as unexpected.
    """
    renamed: dict[str, T] = {}
    for name, weight in weights.items():
        new = translate(name, names) or name
        renamed[name if new in renamed else new] = weight
    return renamed


def fit(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into a model if all of them fit, and the model lacks none.

    Args:
        model: a model with our names of weights.
        weights: weights by our names; a foreign name is unexpected.
        path: the file, for the error.

    Raises:
        UserError: weights are missing, unexpected, or of another shape or kind of dtype. The error counts and names
            them, and the model keeps its weights.
    """
    expected = model.state_dict()
    differing = {name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape}
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "unexpected": sorted(weights.keys() - expected.keys()),
        "of another shape": [
            f"{name} {[*weights[name].shape]} (expected {[*expected[name].shape]})" for name in sorted(differing)
        ],
    }
    if any(problems.values()):
        matched = len(expected.keys() & weights.keys()) - len(differing)
        parts = [_listed(kind, names) for kind, names in problems.items() if names]
        raise UserError(f"checkpoint {path}: {matched} of {len(expected)} weights matched; {'; '.join(parts)}")
    load_weights(model, weights)


def number_of(weights: Mapping[str, object], prefix: str) -> int:
    """Return how many numbered blocks there are under a prefix; raise if one of them is missing.

    Raises:
        UserError: the numbers have a gap.
    """
    numbers = {
        int(number)
        for name in weights
        if name.startswith(prefix) and len(number := name.removeprefix(prefix).split(".")[0]) < 6 and number.isdecimal()
    }
    if numbers and len(numbers) <= max(numbers):
        raise UserError(f"the file has {prefix}{max(numbers)} but only {len(numbers)} such blocks: some are missing")
    return len(numbers)


def shape(weights: Mapping[str, Tensor], name: str, *, ndim: int) -> tuple[int, ...]:
    """Return the shape of a weight that tells sizes of the model.

    Raises:
        UserError: there is no such weight, it has another number of dimensions, or it is empty.
    """
    if name not in weights:
        raise UserError(f"the file lacks the weight {name}")
    if weights[name].ndim != ndim or weights[name].numel() == 0:
        raise UserError(f"the weight {name} has shape {[*weights[name].shape]}; expected {ndim} sizes of at least 1")
    return tuple(weights[name].shape)


def _listed(kind: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
    return f"{len(names)} {kind}: {', '.join(name[:120] for name in names[:SHOWN])}{more}"


def _pattern(prefix: str) -> re.Pattern[str]:
    rest = r"(?P<rest>.+)" if prefix.endswith((".", "_")) else r"(?P<rest>)"
    return re.compile(re.escape(prefix).replace(r"\{n\}", r"(?P<n>\d+)") + rest)
