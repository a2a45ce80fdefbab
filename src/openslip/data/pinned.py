"""Reusable pinned-memory buffers for whole batches, so that uploads to a GPU are asynchronous."""

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable
from weakref import WeakSet

import torch
from torch import Tensor

LIMIT = 4 * 2**30  # bytes per rank
BUFFERS = 4  # upper bound; at least two are needed: one is uploaded while another is filled
ALIGNMENT = 64  # bytes


def aligned(num_bytes: int) -> int:
    """Round a number of bytes up to the next offset at which a column may begin."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


@runtime_checkable
class Event(Protocol):
    """Completion of an upload, as a CUDA event reports it."""

    def query(self) -> bool:
        """Whether the upload has finished."""
        ...

    def synchronize(self) -> None:
        """Wait until the upload has finished."""
        ...


class Buffer:
    """Pinned memory of one batch, from which columns are allocated one after another."""

    def __init__(self, memory: Tensor, buffers: "Buffers") -> None:
        self.memory = memory
        self.buffers = buffers
        self.used = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """Allocate an uninitialised column; None if the buffer has too little memory left."""
        start, num_bytes = self.used, math.prod(shape) * dtype.itemsize
        if start + num_bytes > len(self.memory):
            return None
        self.used += aligned(num_bytes)
        return self.memory[start : start + num_bytes].view(dtype).view(shape)

    def give_back(self, uploaded: Event) -> None:
        """Return the memory to the pool; it is reused once the upload has finished."""
        self.buffers.lent.discard(self)
        self.buffers.returned.append((self.memory, uploaded))


def pinned_memory(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def allocated(num_bytes: int) -> int:
    """Bytes that torch pins for a request of `num_bytes`: it rounds up to a power of two."""
    return 1 << (num_bytes - 1).bit_length()


class Buffers:
    """Pool of pinned buffers for batches on their way to the GPU.

    Args:
        size: bytes of one batch.
        limit: bytes of all buffers together; a batch that gets no buffer is kept in pageable memory.
        allocate: allocates that many bytes of pinned memory.
    """

    def __init__(self, size: int, limit: int = LIMIT, allocate: Callable[[int], Tensor] = pinned_memory) -> None:
        self.size = size
        self.count = min(BUFFERS, limit // allocated(size))
        self.allocate = allocate
        self.lent: WeakSet[Buffer] = WeakSet()  # weak: a buffer whose batch is never uploaded is freed with the batch
        self.returned: list[tuple[Tensor, Event]] = []  # in the order of their uploads

    def take(self) -> Buffer | None:
        """Take a buffer that no upload reads any more, waiting for one if necessary; None if all are lent."""
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
