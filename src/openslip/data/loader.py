"""Batches from worker processes: a wait for them ends with a signal, and what goes wrong in a worker is one line."""

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
from openslip.distributed import any_rank
from openslip.errors import UserError

HELD = 2  # batches in the process that takes them: the one just fetched, and the one before it
MOST_AHEAD = 4  # batches that each worker may hold ready, where memory allows


class Loader(DataLoader):
    """Every rank fetches equally often: before each batch, and before the end, they agree whether to stop.

    An error of the user's is the same one line, whether a worker meets it or this process.

    Raises:
        Preempted: on all ranks, after a signal to any of them, also one that comes while a batch is waited for.
    """

    waited = 0.0  # seconds that whoever trains has waited for batches
    setting = "data.num_workers"  # names the number of workers in messages

    def __iter__(self) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batches, batch = None, None
        try:
            while True:
                started = time.perf_counter()
                with suppress(signals.Preempted), signals.waiting():
                    batches = super().__iter__() if batches is None else batches
                    batch = self.take(batches)
                self.waited += time.perf_counter() - started
                if any_rank(signals.received() is not None):
                    for worker in getattr(batches, "_workers", ()):
                        worker.terminate()  # else each is waited for: it may be what this process waited for
                    raise signals.Preempted
                if batch is None:
                    return
                yield batch
        except UserError as error:  # from a worker, torch puts the traceback's text before it
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from error
        except Exception as error:
            if "shared memory" in str(error) or (getattr(error, "errno", None) == ENOSPC and not shared_memory()):
                raise full(self.setting) from error
            if "Original Traceback" in str(error):
                raise RuntimeError(str(error).strip().splitlines()[-1]) from error
            if isinstance(error, ConnectionError | EOFError) and self.num_workers:  # torch notices most other deaths
                raise RuntimeError("DataLoader worker ended while it sent a batch") from error
            raise

    def take(self, batches: Iterator[Any]) -> Any:
        """The next batch, or None after the last."""
        return next(batches, None)


class BatchLoader(Loader):
    """Yields whole batches of planned samples, of which at most `prefetch_bytes` wait in shared memory.

    Workers make chunks of a batch, the same number of the next one each, so that it is complete as soon as its own
    samples are decoded. A batch in pinned memory has a `buffer`: call its `give_back` once it is
    uploaded.

    Args:
        batches: makes samples.
        plans: of this rank's batches.
        size: samples of each.
        num_batches: of an epoch.
        num_workers: processes that decode; 0 decodes in this one.
        prefetch_bytes: size of the shared memory, at most.
        local_ranks: processes on this machine that load alike.
        buffers: pinned memory; None: a batch lies in ordinary memory.

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
            except RuntimeError as error:  # others have filled it since
                raise full(self.setting) from error
        super().__init__(
            Chunks(batches, self.slots),
            batch_size=None,
            sampler=ChunkOrder(plans, chunk, num_workers * ahead + 1),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            prefetch_factor=ahead or None,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # without its own, every epoch draws from the training's
        )

    def __len__(self) -> int:
        return self.num_batches

    def take(self, batches: Iterator[tuple[int, Batch]]) -> Batch | None:
        """Join the chunks of the next batch, or None after the last."""
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
    """Chunks that each worker holds ready: at most half of what is free in /dev/shm is used, which others need as well.

    Raises:
        UserError: there is no room for one chunk per worker, and the one that is being read.
    """
    check_shared_memory((num_workers + 1) * local_ranks, bytes_per_chunk)
    room = min(prefetch_bytes, shared_memory() / (2 * local_ranks)) / bytes_per_chunk
    return int(max(1, min(most, (room - 1) // num_workers)))


def check_shared_memory(count: int, bytes_each: int, setting: str = Loader.setting) -> None:
    """Refuse what cannot lie in /dev/shm, through which workers send batches; without it they die, or wait for ever.

    Args:
        count: batches, or chunks of them, that lie there at a time.
        bytes_each: size of one.
        setting: names the number of workers in the message.
    """
    free = shared_memory()
    if count * bytes_each > free:
        raise UserError(
            f"/dev/shm has {free / 2**20:.0f} MiB free, and what {setting} hold ready there needs "
            f"{count * bytes_each / 2**20:.0f} MiB, {count} x {bytes_each / 2**20:.1f}: {more(setting)}, "
            "or fewer of them"
        )


def full(setting: str) -> UserError:
    return UserError(f"/dev/shm is full, through which {setting} send batches: {more(setting)}")


def more(setting: str) -> str:
    return f"docker run --shm-size=8g, or {setting}=0"


def shared_memory() -> float:
    """Bytes that are free in /dev/shm, to the megabyte."""
    try:
        place = os.statvfs("/dev/shm")
    except FileNotFoundError:  # macOS has shared memory elsewhere
        return math.inf
    return place.f_bavail * place.f_frsize // 2**20 * 2**20


def start_worker(worker: int) -> None:
    """Workers are many, so each computes on one core; the main process tells them when to end."""
    torch.set_num_threads(1)
    signals.ignore(worker)
    # A thread of the queue's sends a batch; where it fails, it prints a traceback and the main process waits for ever.
    Queue._on_queue_feeder_error = send_failure  # pyright: ignore[reportAttributeAccessIssue]


def send_failure(queue: Queue, error: Exception, batch: tuple[Any, ...]) -> None:
    """Send why a batch could not be sent, in its place."""
    queue.put((batch[0], ExceptionWrapper((type(error), error, error.__traceback__), "in DataLoader worker process")))
