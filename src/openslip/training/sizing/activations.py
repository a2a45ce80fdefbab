"""Activations: what a sample holds at most while it is encoded and differentiated, counted where tensors are made."""

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

# Not one: tensors of a single sample count as contiguous where those of several are copied.
SIZES = (2, 3)


def activation_bytes(objective: Objective, model: nn.Module, batch: dict[str, Tensor]) -> float:
    """What each further sample of a micro-batch takes at most, forward and backward, beside its pixels and captions.

    Weights, their gradients and their 16-bit copies are as large for two samples as for three, so what is larger is
    the samples'. Blocks that are encoded again in the backward pass count as what they hold then.

    Args:
        objective: set up for the model.
        model: what is trained, on the batch's device.
        batch: its first samples are measured, again and again where there are too few.
    """
    few, more = (live_bytes(objective, model, first(batch, size)) for size in SIZES)
    if len(few) != len(more):  # operations that depend on the samples: too much is counted rather than too little
        return max(more) / max(SIZES)
    return float(max(after - before for before, after in zip(few, more, strict=True)))


def first(batch: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    return {key: column[torch.arange(size) % len(column)] for key, column in batch.items()}


def live_bytes(objective: Objective, model: nn.Module, batch: dict[str, Tensor]) -> list[int]:
    """Bytes made and not freed, after each operation of the passes."""
    with LiveBytes() as counter:
        differentiate(objective, model, batch)
    return counter.history


def differentiate(objective: Objective, model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Encodes and, where something is trained, goes back to the weights; their gradients are dropped."""
    features = objective.encode(model, batch)
    sums = [feature.float().sum() for feature in features.values() if feature.requires_grad]
    if sums:
        trained = [p for p in (*model.parameters(), *objective.parameters()) if p.requires_grad]
        # Not `backward`: hooks of DDP would wait for the other ranks.
        torch.autograd.grad(torch.stack(sums).sum(), trained, allow_unused=True)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made while it is active, until they are freed.

    Autograd runs backward passes, and checkpoints in them, under the mode of their caller, also in its own threads.

    Attributes:
        history: bytes after each operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: list[int] = []
        self.live = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in storages((args, kwargs)):
            self.known[storage] = True  # made before the mode, if it is not known yet
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
    """Run passes that are no part of the training: nothing is compiled, random states and buffers are restored.

    All buffers are copied, queues too, since that happens once in a run.
    """
    devices = list({value.device for value in batch.values() if value.device.type == "cuda"})
    buffers = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
