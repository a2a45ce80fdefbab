"""Batches from worker processes: a signal ends the wait for them, and a worker's error is reported in one line."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from errno import ENOSPC
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Sampler

from openslip import signals
from openslip.data.batches import Batches, Plan
from openslip.data.chunks import Batch, ChunkOrder, Chunks, JoinedBatch, Slots, chunk_bytes, chunk_size
from openslip.data.pinned import Buffers
from openslip.distributed import any_rank, raise_first
from openslip.errors import UserError

HELD = 2  # batches that the consuming process keeps alive: the one just fetched and the one before it
MOST_AHEAD = 4  # batches that each worker may hold ready, where memory allows


class Loader(DataLoader):
    """DataLoader whose ranks agree, before each batch and before the end, whether to stop.

    All ranks must fetch the same number of batches. A UserError is the same one line, whether a worker or this process
    raises it.

    Raises:
        Preempted: on all ranks, once any rank has received a signal, even if the signal interrupts the wait for a
            batch.
    """

    fails_together = False  # whether an error on one rank, in place of a batch, is raised on every rank
    failure: Exception | None = None  # error of this rank that is raised at the next fetch, if `fails_together`
    waited = 0.0  # seconds that the training process has waited for batches
    setting = "data.num_workers"  # config key that error messages name for the number of workers

    def __iter__(self) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batches, batch = None, None
        while True:
            started = time.perf_counter()
            try:
                with suppress(signals.Preempted), signals.waiting():
                    batches = super().__iter__() if batches is None else batches
                    batch = self.take(batches)
            except Exception as error:
                failure = self.readable(error)
                if not self.fails_together:
                    raise failure from (None if failure is error else error)
                self.failure = self.failure or failure
            self.waited += time.perf_counter() - started
            if any_rank(signals.received() is not None or self.failure is not None):
                if self.fails_together:
                    raise_first(self.failure)
                # The shutdown of the loader joins every worker, and the one that this process waited for may hang.
                for worker in getattr(batches, "_workers", ()):
                    worker.terminate()
                raise signals.Preempted
            if batch is None:
                return
            yield batch

    def readable(self, error: Exception) -> Exception:
        """Return the error of a worker as if this process had raised it, or the error itself."""
        if isinstance(error, UserError):  # in a worker's error, torch put the traceback before the message
            return type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip())
        if "shared memory" in str(error) or (getattr(error, "errno", None) == ENOSPC and not shared_memory()):
            return full(self.setting)
        if "Original Traceback" in str(error):
            return RuntimeError(str(error).strip().splitlines()[-1])
        if isinstance(error, ConnectionError | EOFError) and self.num_workers:  # torch notices most other deaths
            return RuntimeError("DataLoader worker ended while it sent a batch")
        return error

    def take(self, batches: Iterator[Any]) -> Any:
        """Return the next batch, or None after the last one."""
        return next(batches, None)


class BatchLoader(Loader):
    """Loader of whole batches of planned samples; prefetched chunks take at most `prefetch_bytes` of shared memory.

    Each worker decodes the same number of chunks of a batch, so a batch is complete as soon as its own samples are
    decoded. A batch in pinned memory has a `buffer`: call its `give_back` once the batch is uploaded.

    Args:
        batches: turns a plan into decoded samples.
        plans: this rank's samples, one plan per batch.
        size: samples per batch on this rank.
        num_batches: batches per epoch.
        num_workers: worker processes that decode; 0 decodes in the calling process.
        prefetch_bytes: upper bound for the shared memory of this rank, in bytes.
        local_ranks: ranks on this machine, which share /dev/shm.
        buffers: pinned memory for whole batches; None keeps them in pageable memory.

    Raises:
        UserError: /dev/shm has no room for one chunk per worker.
    """

    def __init__(
        self,
        batches: Batches,
        plans: Sampler[Plan],
        *,
        size: int,
        num_batches: int,
        num_workers: int,
        prefetch_bytes: int,
        local_ranks: int,
        buffers: Buffers | None,
    ) -> None:
        self.views, self.size, self.num_batches, self.buffers = batches.views, size, num_batches, buffers
        chunk = chunk_size(size, num_workers)
        ahead, self.slots = 0, None
        if num_workers:
            num_chunks = math.ceil(size / chunk)
            most = min(MOST_AHEAD * num_chunks, math.ceil(self.num_batches * num_chunks / num_workers))
            num_bytes = chunk_bytes(self.views, chunk)
            ahead = chunks_ahead(num_workers, most, num_bytes, prefetch_bytes, local_ranks)
            try:
                self.slots = Slots(num_workers * ahead + 1, num_bytes)
            except RuntimeError as error:  # other processes have filled /dev/shm since it was checked
                raise full(self.setting) from error
        super().__init__(
            Chunks(batches, self.slots),
            batch_size=None,
            sampler=ChunkOrder(plans, chunk, num_workers * ahead + 1),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            prefetch_factor=ahead or None,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # without it, each epoch would draw a seed from the global generator
        )

    def __len__(self) -> int:
        return self.num_batches

    def take(self, batches: Iterator[tuple[int, Batch]]) -> Batch | None:
        """Join the chunks of the next batch; None after the last one."""
        joined: JoinedBatch | None = None
        for slot, sent in batches:
            if self.slots is None and self.buffers is None:
                return sent
            joined = joined or JoinedBatch(self.views, self.size, self.buffers and self.buffers.take())
            joined.add(sent if self.slots is None else self.slots.read(slot, sent))
            if joined.is_complete:
                return joined.batch()
        return None


def chunks_ahead(num_workers: int, most: int, bytes_per_chunk: int, prefetch_bytes: int, local_ranks: int) -> int:
    """Number of chunks that each worker may prefetch, so that all ranks use at most half of the free /dev/shm.

    The other half is left to other processes.

    Args:
        num_workers: worker processes of this rank.
        most: upper bound for the result.
        bytes_per_chunk: shared memory of one chunk, in bytes.
        prefetch_bytes: upper bound for the shared memory of this rank, in bytes.
        local_ranks: ranks on this machine, which share /dev/shm.

    Raises:
        UserError: /dev/shm has no room for one chunk per worker and the chunk that is being read.
    """
    check_shared_memory((num_workers + 1) * local_ranks, bytes_per_chunk)
    room = min(prefetch_bytes, shared_memory() / (2 * local_ranks)) / bytes_per_chunk
    return int(max(1, min(most, (room - 1) // num_workers)))


def check_shared_memory(count: int, bytes_each: int, setting: str = Loader.setting) -> None:
    """Raise UserError unless /dev/shm has room for the batches that workers send through it.

    With too little room, workers would die or wait for ever.

    Args:
        count: batches, or chunks of batches, that are in /dev/shm at a time.
        bytes_each: size of one of them, in bytes.
        setting: config key that the message names for the number of workers.
    """
    free = shared_memory()
    if count * bytes_each > free:
        raise UserError(
            f"/dev/shm has {free / 2**20:.0f} MiB free, but {setting} needs "
            f"{count * bytes_each / 2**20:.0f} MiB, {count} x {bytes_each / 2**20:.1f}: {more(setting)}, "
            "or fewer workers"
        )


def full(setting: str) -> UserError:
    return UserError(f"/dev/shm is full, through which {setting} send batches: {more(setting)}")


def more(setting: str) -> str:
    return f"docker run --shm-size=8g, or {setting}=0"


def shared_memory() -> float:
    """Free bytes in /dev/shm, rounded down to whole MiB."""
    try:
        place = os.statvfs("/dev/shm")
    except FileNotFoundError:  # macOS keeps shared memory elsewhere
        return math.inf
    return place.f_bavail * place.f_frsize // 2**20 * 2**20


def start_worker(worker: int) -> None:
    """Restrict a worker to one thread, because there are many, and let the main process alone decide when it ends."""
    torch.set_num_threads(1)
    signals.ignore(worker)
    # The queue's feeder thread sends batches. By default it only prints a traceback when it cannot send one, and the
    # main process then waits for ever.
    Queue._on_queue_feeder_error = send_failure  # pyright: ignore[reportAttributeAccessIssue]


def send_failure(queue: Queue, error: Exception, batch: tuple[Any, ...]) -> None:
    """Send the error in place of the batch that could not be sent."""
    queue.put((batch[0], ExceptionWrapper((type(error), error, error.__traceback__), "in DataLoader worker process")))
