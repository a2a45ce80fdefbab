"""What locked towers return in the first pass of a micro-batch, for the pass that encodes it again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from openslip.models.tower import Tower

_METHODS = ("forward", "tokens", "pooled_and_tokens")


class LockedFeatures:
    """Features of one micro-batch. They need no graph: keeping them takes a vector, or a sequence, per sample."""

    def __init__(self, model: nn.Module) -> None:
        self.returned: dict[Tower, list[Any]] = {
            module: [] for module in model.modules() if isinstance(module, Tower) and module.locked
        }

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, what locked towers return is kept."""
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
        """Inside, locked towers do not run, and return what was kept in the same order."""

        def giving(kept: Iterator[Any]) -> Callable:
            return lambda *inputs: next(kept)

        with methods({tower: len(_METHODS) * [giving(iter(kept))] for tower, kept in self.returned.items()}):
            yield


@contextmanager
def methods(replaced: dict[Tower, list[Callable]]) -> Iterator[None]:
    """Inside, these towers run these functions in place of their methods."""
    for tower, functions in replaced.items():
        for name, function in zip(_METHODS, functions, strict=True):
            setattr(tower, name, function)
    try:
        yield
    finally:
        for tower in replaced:
            for name in _METHODS:
                delattr(tower, name)
