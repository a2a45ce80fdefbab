"""Communication between ranks; without a process group everything works as with one rank."""

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from openslip import slurm
from openslip.errors import OtherRankError, described
from openslip.terminal import notice

T = TypeVar("T")

FOREVER = 1e9  # seconds; much larger values overflow the clocks of gloo and NCCL

_timeout: timedelta | None = None  # None means torch's default of half an hour
_shared_question: Callable[[], bool] = bool  # bool() is False
_shared_answer = False


def rank() -> int:
    """Rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process is rank 0, which writes for all ranks; correct also when there is no process group yet."""
    return rank() == 0 if dist.is_available() and dist.is_initialized() else slurm.is_first_task()


def notice_once(*texts: str) -> None:
    """Print texts on stderr, on rank 0 only."""
    if is_main_process():
        for line in "\n".join(texts).splitlines():
            notice(line)


_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.14


# torch.distributed.nn.functional.all_gather is deprecated and differs between versions; this function works in all.
class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        gathered = x.new_empty(world_size() * len(x), *x.shape[1:])
        _all_gather(gathered, x.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Cloned, because autograd may pass the same tensor to other nodes.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        local = len(gradient) // world_size()
        return gradient[rank() * local : (rank() + 1) * local]


def gather(x: Shaped[Tensor, "local *rest"], *, with_grad: bool) -> Shaped[Tensor, "global *rest"]:
    """Return the rows of all ranks in rank order, the order of the global batch; `with_grad=False` detaches them."""
    if world_size() == 1:
        return x if with_grad else x.detach()
    return _Gather.apply(x) if with_grad else _Gather.apply(x.detach())  # pyright: ignore[reportReturnType]


def all_max(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the elementwise maximum over ranks, without gradient."""
    if world_size() == 1:
        return x.detach()
    largest = x.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def all_sum(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the sum over ranks, without gradient."""
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_ranks(total: Float[Tensor, ""], count: Shaped[Tensor, ""]) -> Float[Tensor, ""]:
    """Return this rank's total over the count of all ranks, scaled so that its mean over ranks is the global mean."""
    return total * world_size() / all_sum(count.to(total.dtype)).clamp(min=1)


@cache
def _cpu_group() -> Any:
    """Return a gloo group, for exchanges without device synchronisation; the first call must be made by all ranks."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=_timeout)


def wait_up_to(seconds: float) -> timedelta:
    """Set how long ranks wait for one another in exchanges on the CPU; return it as timeout of other process groups."""
    global _timeout
    _timeout = timedelta(seconds=min(seconds, FOREVER))
    return _timeout


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; the same exchange also updates `shared_answer`."""
    global _shared_answer
    flags = [flag, _shared_question()]
    if world_size() > 1:
        reduced = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(reduced, dist.ReduceOp.MAX, group=_cpu_group())
        flags = reduced.bool().tolist()
    flag, _shared_answer = flags
    return flag


def largest_of_ranks(number: int) -> int:
    """Return the largest of the ranks' numbers on every rank."""
    if world_size() == 1:
        return number
    reduced = torch.tensor(number)
    dist.all_reduce(reduced, dist.ReduceOp.MAX, group=_cpu_group())
    return int(reduced)


def share_question(question: Callable[[], bool] | None) -> None:
    """Set a question, whose answer on this rank every later `any_rank` exchanges as a second flag; None removes it."""
    global _shared_question, _shared_answer
    _shared_question, _shared_answer = question or bool, False


def shared_answer() -> bool:
    """Whether, in the last `any_rank`, the shared question was answered with true on any rank; equal on all ranks."""
    return _shared_answer


def from_first_rank(value: Any) -> Any:
    """Broadcast rank 0's value to every rank."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_cpu_group())
    return values[0]


def to_first_rank(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "ranks *shape"] | None:
    """Return the tensors of all ranks in rank order, on the CPU of rank 0; None on other ranks. A collective call."""
    x = x.detach().cpu().contiguous()
    if world_size() == 1:
        return x[None].clone()
    every = x.new_empty(world_size(), *x.shape) if rank() == 0 else None
    dist.gather(x, None if every is None else list(every), group=_cpu_group())
    return every


def on_first_rank(compute: Callable[[], T]) -> T:
    """Call a function on rank 0 only, and return its result, or raise its error, on every rank.

    Used where the last bits of a result depend on the number of threads, which may differ between ranks. Tensors in
    the result must be on the CPU.
    """
    if world_size() == 1:
        return compute()
    result = on_every_rank(lambda: compute() if rank() == 0 else None)
    return from_first_rank(result)


def on_every_rank(compute: Callable[[], T]) -> T:
    """Call a function on every rank and return this rank's result; if it fails on one rank, raise on every rank.

    Otherwise the other ranks would wait in their next exchange for the one that failed. All ranks must call this, and
    the function must not exchange anything.

    Raises:
        OtherRankError: the function raised an error on another rank.
    """
    failure = None
    try:
        result = compute()
    except Exception as error:
        failure, result = error, None
    fail_together(failure)
    return result  # pyright: ignore[reportReturnType]


def fail_together(failure: Exception | None) -> None:
    """Raise on every rank if something has failed on any rank; all ranks must call this.

    Args:
        failure: the error on this rank, if there is one, which is raised here as it is.

    Raises:
        OtherRankError: only other ranks have failed; it names the first of them.
    """
    if any_rank(failure is not None):
        raise_first(failure)


def raise_first(failure: Exception | None) -> None:
    """Raise this rank's error, or an OtherRankError with the first other one, if any rank has one."""
    messages = of_all_ranks(None if failure is None else described(failure))
    if failure is not None:
        raise failure
    for number, message in enumerate(messages):
        if message is not None:
            raise OtherRankError(f"rank {number}: {message}")


def of_all_ranks(value: Any) -> list[Any]:
    """Gather every rank's value, in rank order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_cpu_group())
    return values
