"""Features of locked towers, kept from the pass that makes them for the one that encodes a slice again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class LockedFeatures:
    """Of one slice. They need no graph, so keeping them costs a vector per sample; a second pass, the whole tower."""

    def __init__(self, model: nn.Module) -> None:
        self.features: dict[nn.Module, list[Any]] = {
            module: [] for module in model.modules() if getattr(module, "locked", False)
        }

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, what locked towers give is kept."""

        def keeping(run: Callable, features: list[Any]) -> Callable:
            def forward(*inputs: Any) -> Any:
                features.append(run(*inputs))
                return features[-1]

            return forward

        with forwards({tower: keeping(tower.forward, features) for tower, features in self.features.items()}):
            yield

    @contextmanager
    def given_again(self) -> Iterator[None]:
        """Inside, locked towers do not run, and give what was kept in the same order."""

        def giving(features: list[Any]) -> Callable:
            again = iter(features)
            return lambda *inputs: next(again)

        with forwards({tower: giving(features) for tower, features in self.features.items()}):
            yield


@contextmanager
def forwards(replaced: dict[nn.Module, Callable]) -> Iterator[None]:
    """Inside, these modules run these functions in place of their own."""
    for module, forward in replaced.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in replaced:
            del module.forward
