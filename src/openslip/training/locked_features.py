"""Keeps the outputs of locked towers for a micro-batch, so that the recomputation of the micro-batch reuses them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from openslip.models.tower import Tower

_METHODS = ("forward", "tokens", "pooled_and_tokens")


class LockedFeatures:
    """Outputs of a model's locked towers for one micro-batch; they have no autograd graph and can be used twice."""

    def __init__(self, model: nn.Module) -> None:
        self.returned: dict[Tower, list[Any]] = {
            module: [] for module in model.modules() if isinstance(module, Tower) and module.locked
        }

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Record what locked towers return inside this context."""
        inside: set[Tower] = set()

        def keeping(tower: Tower, method: Callable) -> Callable:
            def call(*inputs: Any) -> Any:
                if tower in inside:  # called by another method, whose output is recorded
                    return method(*inputs)
                inside.add(tower)
                self.returned[tower].append(method(*inputs))
                inside.remove(tower)
                return self.returned[tower][-1]

            return call

        with methods({tower: [keeping(tower, getattr(tower, name)) for name in _METHODS] for tower in self.returned}):
            yield

    @contextmanager
    def given_again(self) -> Iterator[None]:
        """Inside this context, let locked towers return the recorded outputs in the same order instead of running."""

        def giving(kept: Iterator[Any]) -> Callable:
            return lambda *inputs: next(kept)

        with methods({tower: len(_METHODS) * [giving(iter(kept))] for tower, kept in self.returned.items()}):
            yield


@contextmanager
def methods(replaced: dict[Tower, list[Callable]]) -> Iterator[None]:
    """Replace the methods `_METHODS` of each tower by the given functions inside this context."""
    for tower, functions in replaced.items():
        for name, function in zip(_METHODS, functions, strict=True):
            setattr(tower, name, function)
    try:
        yield
    finally:
        for tower in replaced:
            for name in _METHODS:
                delattr(tower, name)
