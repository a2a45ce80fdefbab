"""Chunks of batches: each worker makes some samples of a batch, and the main process joins the chunks in order.

Workers write chunks to slots of shared memory, which is allocated once and reused: allocating it for every batch would
take a tenth as long as decoding.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from openslip.data.batches import Batches, Notes, Plan
from openslip.data.pinned import Buffer, aligned
from openslip.data.view import View, column_bytes
from openslip.errors import UserError

LARGEST, SMALLEST = 128, 32  # samples per chunk
Batch = dict[str, Any]  # `index`, `notes`, and for each view its columns by suffix


def chunk_size(batch_size: int, num_workers: int) -> int:
    """Samples per chunk: all workers get the same number of a batch's chunks, unless the chunks become too small."""
    if not num_workers:
        return batch_size
    chunks_per_worker = math.ceil(batch_size / (num_workers * LARGEST))
    return min(batch_size, max(SMALLEST, math.ceil(batch_size / (num_workers * chunks_per_worker))))


def chunk_bytes(views: Mapping[str, View], num_samples: int) -> int:
    """Largest number of bytes that the aligned columns of `num_samples` samples can take."""
    index = torch.int64.itemsize
    return sum(aligned(num_samples * num_bytes) for num_bytes in (index, *column_bytes(views)))


class Task(NamedTuple):
    """Request to a worker: the samples of a chunk, and the slot to write them to."""

    slot: int
    plan: Plan


class ChunkOrder(Sampler[Task]):
    """Sampler of the chunks of planned batches, in order.

    The loader requests a new chunk when it receives one, and the received chunk still occupies its slot. There is one
    slot more than chunks in progress, so the slot of the chunk received before it is free for the new one.

    Args:
        plans: plans of whole batches.
        size: samples per chunk.
        num_slots: number of chunks that workers make or hold ready at a time, plus one.
    """

    def __init__(self, plans: Sampler[Plan], size: int, num_slots: int) -> None:
        self.plans = plans
        self.size = size
        self.num_slots = num_slots

    def __iter__(self) -> Iterator[Task]:
        number = 0
        for epoch, step, indices in self.plans:
            for start in range(0, len(indices), self.size):
                yield Task(number % self.num_slots, Plan(epoch, step, indices[start : start + self.size]))
                number += 1


class Placed(NamedTuple):
    """Location of a column in its slot."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Slots:
    """Shared memory for `count` chunks of at most `size` bytes."""

    def __init__(self, count: int, size: int) -> None:
        shared = torch.UntypedStorage._new_shared(count * size)  # `share_memory_` would copy uninitialised memory
        self.memory = torch.empty(0, dtype=torch.uint8).set_(shared).view(count, size)

    def write(self, slot: int, chunk: Batch) -> Batch:
        """Copy a chunk's columns into a slot; the result has their locations, and the columns that do not fit."""
        offset = 0

        def put(column: Tensor) -> Placed | Tensor:
            nonlocal offset
            placed = Placed(offset, tuple(column.shape), column.dtype)
            if offset + column.nbytes > self.memory.shape[1]:
                return column
            self.column(slot, placed).copy_(column)
            offset += aligned(column.nbytes)
            return placed

        return of_columns(chunk, put)

    def read(self, slot: int, chunk: Batch) -> Batch:
        """Restore a chunk from the result of `write`; its columns are views of the slot."""
        return of_columns(chunk, lambda column: column if isinstance(column, Tensor) else self.column(slot, column))

    def column(self, slot: int, placed: Placed) -> Tensor:
        num_bytes = math.prod(placed.shape) * placed.dtype.itemsize
        memory = self.memory[slot, placed.offset : placed.offset + num_bytes]
        return memory.view(placed.dtype).view(placed.shape)


def of_columns(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    """Apply a function to each column of a batch."""
    return {
        name: {suffix: function(column) for suffix, column in value.items()}
        if isinstance(value, dict)
        else (value if name == "notes" else function(value))
        for name, value in batch.items()
    }


class Chunks(Dataset):
    """Dataset that makes the chunk of a task; runs in the workers.

    Args:
        batches: turns a plan of any size into decoded samples.
        slots: shared memory to which chunks are written; None returns them as they are.
    """

    def __init__(self, batches: Batches, slots: Slots | None) -> None:
        self.batches = batches
        self.slots = slots

    def __getitem__(self, index: Task) -> tuple[int, Batch]:
        slot, plan = index
        chunk = self.batches[plan]
        return slot, chunk if self.slots is None else self.slots.write(slot, chunk)


class JoinedBatch:
    """Batch joined from its chunks in order; equal to the batch that one call makes from all its samples.

    Args:
        views: batch key to view.
        size: samples in the batch.
        buffer: pinned memory for the columns that are moved to a GPU; None uses pageable memory.
    """

    def __init__(self, views: Mapping[str, View], size: int, buffer: Buffer | None) -> None:
        self.views = views
        self.size = size
        self.buffer = buffer
        self.num_samples = 0
        self.notes: Notes | None = None
        self.columns: dict[tuple[str, str], Tensor] = {}
        self.padded: dict[tuple[str, str], list[Tensor]] = {}  # chunks of columns whose width depends on all

    @property
    def is_complete(self) -> bool:
        return self.num_samples == self.size

    def add(self, chunk: Batch) -> None:
        """Copy the next chunk into the batch."""
        self.add_column("index", "", chunk["index"])
        for name, view in self.views.items():
            for suffix, column in chunk[name].items():
                if suffix in view.padding:
                    self.padded.setdefault((name, suffix), []).append(column.clone())
                else:
                    self.add_column(name, suffix, column)
        notes: Notes = chunk["notes"]
        self.notes = notes if self.notes is None else notes._replace(bad=self.notes.bad + notes.bad)
        self.num_samples += len(chunk["index"])

    def add_column(self, name: str, suffix: str, column: Tensor) -> None:
        if (name, suffix) not in self.columns:
            self.columns[name, suffix] = self.empty(name, suffix, (self.size, *column.shape[1:]), column.dtype)
        whole = self.columns[name, suffix]
        if column.shape[1:] != whole.shape[1:] or column.dtype != whole.dtype:
            raise UserError(
                f"view {name}: column {suffix!r} is {list(column.shape[1:])} {column.dtype} for some samples and "
                f"{list(whole.shape[1:])} {whole.dtype} for others; name what fills shorter ones in its `padding`"
            )
        whole[self.num_samples : self.num_samples + len(column)] = column

    def batch(self) -> Batch:
        """Return the whole batch, with the key `buffer` if it is in pinned memory."""
        batch: Batch = {"index": self.columns["index", ""], "notes": self.notes, **{name: {} for name in self.views}}
        for (name, suffix), columns in self.padded.items():
            width = max(column.shape[1] for column in columns)
            whole = self.empty(name, suffix, (self.size, width, *columns[0].shape[2:]), columns[0].dtype)
            whole.fill_(self.views[name].padding[suffix])
            start = 0
            for column in columns:
                whole[start : start + len(column), : column.shape[1]] = column
                start += len(column)
            self.columns[name, suffix] = whole
        for (name, suffix), column in self.columns.items():
            if name in self.views:
                batch[name][suffix] = column
        return batch if self.buffer is None else batch | {"buffer": self.buffer}

    def empty(self, name: str, suffix: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocate a column, in pinned memory if it is moved to a GPU and the buffer has room."""
        moved = name not in self.views or suffix not in self.views[name].on_cpu
        column = self.buffer.empty(shape, dtype) if self.buffer is not None and moved else None
        if column is None:  # numpy asks for huge pages, which cause fewer page faults
            num_bytes = math.prod(shape) * dtype.itemsize
            column = torch.from_numpy(np.empty(num_bytes, np.uint8)).view(dtype).view(shape)
        return column
