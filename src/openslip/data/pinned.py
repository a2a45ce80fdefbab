"""Pinned memory for whole batches, so that uploads to a GPU are asynchronous; a few buffers that are reused."""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable
from weakref import WeakSet

import torch
from torch import Tensor

LIMIT = 4 * 2**30  # bytes per rank
BUFFERS = 4  # at most; two are needed, one that is uploaded and one that is filled
ALIGNMENT = 64  # bytes


def aligned(num_bytes: int) -> int:
    """Bytes up to where the next column may begin."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


@runtime_checkable
class Event(Protocol):
    """What is known of an upload, such as a CUDA event."""

    def query(self) -> bool:
        """Whether it is done."""
        ...

    def synchronize(self) -> None:
        """Wait for it."""
        ...


class Buffer:
    """Memory of one batch, handed out column by column."""

    def __init__(self, memory: Tensor, buffers: "Buffers") -> None:
        self.memory = memory
        self.buffers = buffers
        self.used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """Memory of a column, or None where there is too little left."""
        start, num_bytes = self.used, math.prod(shape) * dtype.itemsize
        if start + num_bytes > len(self.memory):
            return None
        self.used += aligned(num_bytes)
        return self.memory[start : start + num_bytes].view(dtype).view(shape)

    def give_back(self, uploaded: Event) -> None:
        """Let the memory be used again once the batch is uploaded."""
        self.buffers.lent.discard(self)
        self.buffers.returned.append((self.memory, uploaded))


def pinned_memory(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def allocated(num_bytes: int) -> int:
    """Bytes that torch pins for so many: a power of two."""
    return 1 << (num_bytes - 1).bit_length()


class Buffers:
    """Buffers for batches on their way to the GPU, within a limit.

    Args:
        size: bytes of a batch.
        limit: bytes of all buffers; a batch for which there is no buffer lies in ordinary memory.
        allocate: makes pinned memory.
    """

    def __init__(self, size: int, limit: int = LIMIT, allocate: Callable[[int], Tensor] = pinned_memory) -> None:
        self.size = size
        self.count = min(BUFFERS, limit // allocated(size))
        self.allocate = allocate
        self.lent: WeakSet[Buffer] = WeakSet()  # one whose batch is never uploaded is gone with that
        self.returned: list[tuple[Tensor, Event]] = []  # in the order of their uploads

    def take(self) -> Buffer | None:
        """A buffer that nothing reads any more; None where all are lent."""
        ready = next((place for place, (_, uploaded) in enumerate(self.returned) if uploaded.query()), None)
        if ready is None and len(self.lent) + len(self.returned) < self.count:
            memory = self.allocate(self.size)
        elif self.returned:
            memory, uploaded = self.returned.pop(ready or 0)
            uploaded.synchronize()
        else:
            return None
        buffer = Buffer(memory, self)
        self.lent.add(buffer)
        return buffer
