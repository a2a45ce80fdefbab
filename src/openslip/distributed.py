"""What a loss needs to know of the other ranks; everything works the same without a process group."""

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor


def rank() -> int:
    """This process's place among the ranks, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


# torch.distributed.nn.functional.all_gather is deprecated and differs between versions; these eight lines run on all.
class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        gathered = x.new_empty(world_size() * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(gathered, x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        local = len(gradient) // world_size()
        return gradient[rank() * local : (rank() + 1) * local]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def gather(x: Shaped[Tensor, "local *rest"], *, with_grad: bool) -> Shaped[Tensor, "world *rest"]:
    """Rows of all ranks in rank order, which is the order of the global batch; `with_grad=False` detaches them."""
    if world_size() == 1:
        return x if with_grad else x.detach()
    return _Gather.apply(x) if with_grad else _Gather.apply(x.detach())  # pyright: ignore[reportReturnType]


def all_max(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Largest over ranks, without gradient."""
    if world_size() == 1:
        return x.detach()
    largest = x.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def all_sum(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Sum over ranks; the gradient is summed likewise, so a quantity shared by all ranks is differentiated exactly."""
    return x if world_size() == 1 else _Sum.apply(x)  # pyright: ignore[reportReturnType]
