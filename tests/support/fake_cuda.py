"""CUDA tensors without a GPU: shapes, types and devices of a step, and what would make it wait for the device."""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary
from versions import OLD_TORCH

import openslip

if OLD_TORCH:
    pytest.skip("CUDA is made up from inner parts of PyTorch, which were others", allow_module_level=True)

DEVICE = torch.device("cuda", 0)
HOPPER = (9, 0)
SOURCE = str(Path(openslip.__file__).parent)
WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class Shapes(FakeTensorMode):
    """Never starts CUDA, which `fake_cuda` makes believe that it is there."""

    avoid_device_init = True  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]


class FakeCuda(TorchDispatchMode):
    """Tensors of the CPU are real, those of the device have no values; copies to the CPU are zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.is_pinned.default:
            return args[0].is_cpu and args[0].untyped_storage() in self.pinned
        to = kwargs.get("device")
        on_device = any(tensor.is_cuda for tensor in tensors(args, kwargs))
        if (on_device and not is_download(func, args, kwargs)) or (to is not None and torch.device(to).type == "cuda"):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            if func is aten._pin_memory.default:
                return self.pin(args[0].clone())
            if on_device and func is aten.copy_.default:
                return args[0].zero_()
            if on_device:
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            if kwargs.get("pin_memory"):
                return self.pin(func(*args, **{**kwargs, "pin_memory": False}))
            return func(*args, **kwargs)

    def pin(self, tensor: Tensor) -> Tensor:
        """Make it count as pinned."""
        self.pinned[tensor.untyped_storage()] = True
        return tensor


def tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among an operation's arguments, or its results."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value, {})


def is_download(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation with tensors of the device copies them to the CPU."""
    if func is aten.copy_.default:
        return args[0].is_cpu
    to = kwargs.get("device")
    return func is aten._to_copy.default and to is not None and torch.device(to).type == "cpu"


class Event:
    """Stands for `torch.cuda.Event`; waiting for a copy that was made a step ago is meant so."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Waits(AssertionError):
    """An operation makes the host wait for the device."""


class NoWaits(TorchDispatchMode):
    """Raises at the operation that would wait for the device, or that makes a float64 tensor there.

    Args:
        float64: whether those may be made.

    Attributes:
        operations: names of all that ran on the device.
    """

    def __init__(self, *, float64: bool = False) -> None:
        super().__init__()
        self.float64 = float64
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks for a tensor's device or layout
            return func(*args, **kwargs)
        if why := reason_to_wait(func, args, kwargs):
            raise Waits(f"{func} {why}: {line()}")
        made = func(*args, **kwargs)
        on_device = [tensor for tensor in tensors((made,), {}) if tensor.is_cuda]
        if on_device or any(tensor.is_cuda for tensor in tensors(args, kwargs)):
            self.operations.append(str(func))
        if not self.float64 and any(tensor.dtype == torch.float64 for tensor in on_device):
            raise AssertionError(f"{func} makes float64 on the device: {line()}")
        return made


def reason_to_wait(func: Any, args: Any, kwargs: Any) -> str | None:
    """Why an operation would wait for the device, or None."""
    if func in (aten._to_copy.default, aten.copy_.default):
        return reason_of_copy(func, args, kwargs)
    if func in INDEXING:
        masks = [index for index in args[1] if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)]
        return "counts a mask's true places" if any(mask.is_cuda for mask in masks) else None
    tags = WAITING & set(func.tags)
    if not tags or not any(tensor.is_cuda for tensor in tensors(args, kwargs)):
        return None
    if torch.Tag.data_dependent_output in tags:
        return "reads values on the host"
    return "has a shape that depends on values"


def reason_of_copy(func: Any, args: Any, kwargs: Any) -> str | None:
    """Why a copy between devices would wait; only those between the device and pinned memory need not."""
    if func is aten.copy_.default:
        target, source = args[:2]
        to, non_blocking = target.device, args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    else:
        target, source = None, args[0]
        to, non_blocking = torch.device(kwargs.get("device") or source.device), kwargs.get("non_blocking", False)
    if to.type == source.device.type:
        return None
    if not non_blocking:
        return f"copies from {source.device.type} to {to.type} and waits"
    host = source if source.is_cpu else target
    if host is None or not host.is_pinned():
        return f"copies from {source.device.type} to {to.type} by memory that is not pinned"
    return None


def line() -> str:
    """Where the project's code called the operation."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(SOURCE)]
    return (
        f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].line}" if frames else "outside the project"
    )


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, **_: Any
) -> Tensor:
    """What PyTorch chooses on a Hopper GPU; without one it would choose plain products."""
    if mask is None and q.dtype in (torch.float16, torch.bfloat16):
        return aten._scaled_dot_product_flash_attention(q, k, v, is_causal=is_causal)[0]
    bias = None if mask is None else torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    grad = torch.is_grad_enabled()
    return aten._scaled_dot_product_efficient_attention(q, k, v, bias, grad, is_causal=is_causal)[0]


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """A Hopper GPU on which nothing is computed."""
    with (
        patch("torch.cuda.is_available", lambda: True),
        patch("torch.cuda.is_bf16_supported", lambda *_, **__: True),
        patch("torch.cuda.get_device_capability", lambda *_: HOPPER),
        patch("torch.cuda.Event", Event),
        patch("torch.nn.functional.scaled_dot_product_attention", fused_attention),
        Shapes(allow_non_fake_inputs=True),
        FakeCuda() as mode,
    ):
        yield mode
