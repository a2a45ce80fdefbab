"""Build a model without drawing random weights, because all of its weights are loaded from a file next."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

DRAWN = ("uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_")
SHAPED = ("erfinv_", "mul_", "add_", "clamp_")  # what `trunc_normal_` applies to the numbers that it has drawn


class _WithoutDraws(TorchFunctionMode):
    """Skips operations that fill a parameter with random numbers; buffers, which a file may lack, are filled."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped: dict[int, nn.Parameter] = {}  # by id; while these references exist, no other object gets the id

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in DRAWN or name in SHAPED:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, nn.Parameter) and (name in DRAWN or id(tensor) in self.skipped):
                self.skipped[id(tensor)] = tensor
                return tensor
        return func(*args, **kwargs)


@contextmanager
def uninitialised() -> Iterator[None]:
    """Build modules in this context with arbitrary values where their constructors would draw random ones.

    Drawing takes seconds for a ViT-B, several times as long as reading its weights. Every parameter must be loaded
    afterwards.
    """
    with _WithoutDraws():
        yield
