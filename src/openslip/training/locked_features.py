"""Outputs of locked towers, kept from the first pass of a micro-batch for the pass that encodes it again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from openslip.models.tower import Tower

_METHODS = ("forward", "tokens", "pooled_and_tokens")


class LockedFeatures:
    """Keeps the outputs for one micro-batch. They need no graph: a vector, or a sequence of them, per sample."""

    def __init__(self, model: nn.Module) -> None:
        self.returned: dict[Tower, list[Any]] = {
            module: [] for module in model.modules() if isinstance(module, Tower) and module.locked
        }

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what locked towers return inside this context."""
        inside: set[Tower] = set()

        def keeping(tower: Tower, method: Callable) -> Callable:
            def call(*inputs: Any) -> Any:
                if tower in inside:  # one of its methods calls another
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
        """Let locked towers return what was kept, in the same order, without running inside this context."""

        def giving(kept: Iterator[Any]) -> Callable:
            return lambda *inputs: next(kept)

        with methods({tower: len(_METHODS) * [giving(iter(kept))] for tower, kept in self.returned.items()}):
            yield


@contextmanager
def methods(replaced: dict[Tower, list[Callable]]) -> Iterator[None]:
    """Replace the towers' methods by these functions inside this context."""
    for tower, functions in replaced.items():
        for name, function in zip(_METHODS, functions, strict=True):
            setattr(tower, name, function)
    try:
        yield
    finally:
        for tower in replaced:
            for name in _METHODS:
                delattr(tower, name)
