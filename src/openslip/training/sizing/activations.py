"""Peak activation bytes per sample, forward and backward, measured with a dispatch mode that sees every new tensor."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from openslip.objectives.objective import Objective

# Batch sizes to compare. Size 1 is not suitable: tensors of a single sample often count as contiguous, while tensors of
# several samples have to be copied.
SIZES = (2, 3)


def activation_bytes(objective: Objective, model: nn.Module, batch: dict[str, Tensor]) -> float:
    """Return the peak activation bytes of one sample in a micro-batch, without its pixels and ids.

    The bytes are counted for two and for three samples, forward and backward. The size of weights, their gradients and
    their 16-bit copies does not depend on the number of samples, so the difference is the memory of one sample.
    Checkpointed blocks are counted when the backward pass runs them again.

    Args:
        objective: objective whose `setup` has been called with the model.
        model: model to be trained, on the batch's device.
        batch: its first samples are measured; they are repeated if there are too few.
    """
    few, more = (live_bytes(objective, model, first(batch, size)) for size in SIZES)
    if len(few) != len(more):  # the operations depend on the samples: overestimate rather than underestimate
        return max(more) / max(SIZES)
    return float(max(after - before for before, after in zip(few, more, strict=True)))


def first(batch: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    return {key: column[torch.arange(size) % len(column)] for key, column in batch.items()}


def live_bytes(objective: Objective, model: nn.Module, batch: dict[str, Tensor]) -> list[int]:
    """Return the bytes allocated and not yet freed after each operation of the forward and backward pass."""
    with LiveBytes() as counter:
        differentiate(objective, model, batch)
    return counter.history


def differentiate(objective: Objective, model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Encode the batch and, if something is trained, compute the gradients of the weights; discard the results."""
    features = objective.encode(model, batch)
    sums = [feature.float().sum() for feature in features.values() if feature.requires_grad]
    if sums:
        trained = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
        # Not `backward`, because DDP's hooks would wait for the other ranks.
        torch.autograd.grad(torch.stack(sums).sum(), trained, allow_unused=True)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that were created while this mode is active and have not been freed.

    Autograd runs a backward pass in the mode of its caller, even in autograd's own threads. The recomputation of
    checkpointed blocks is therefore counted too.

    Attributes:
        history: bytes allocated after each operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: list[int] = []
        self.live = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in storages((args, kwargs)):
            self.known[storage] = True  # an unknown input was created before the mode was active, and is not counted
        made = func(*args, **(kwargs or {}))
        for storage in storages(made):
            if storage not in self.known:
                self.known[storage] = True
                self.add(storage.nbytes())
                weakref.finalize(storage, self.add, -storage.nbytes())
        self.history.append(self.live)
        return made

    def add(self, size: int) -> None:
        self.live += size


def storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def trial(modules: Sequence[nn.Module], batch: dict[str, Tensor]) -> Iterator[None]:
    """Run trial passes inside this context: nothing is compiled, and random states and buffers are restored afterwards.

    All buffers are copied, even large queues. This costs little, because a run has only a few trial passes.
    """
    devices = list({value.device for value in batch.values() if value.device.type == "cuda"})
    buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
