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
from torch.utils.data import DataLoader

from openslip import signals
from openslip.distributed import any_rank
from openslip.errors import UserError

PREFETCH = 4  # batches that each worker holds ready
HELD = 2  # further ones in the process that trains: the one just fetched, and the one before it


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
                    batch = next(batches, None)
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
                raise UserError(
                    f"/dev/shm is full, through which {self.setting} send batches: {more(self.setting)}"
                ) from error
            if "Original Traceback" in str(error):
                raise RuntimeError(str(error).strip().splitlines()[-1]) from error
            if isinstance(error, ConnectionError | EOFError) and self.num_workers:  # torch notices most other deaths
                raise RuntimeError("DataLoader worker ended while it sent a batch") from error
            raise


def check_shared_memory(num_ready: int, num_batches: int, bytes_per_batch: int, setting: str = Loader.setting) -> None:
    """Refuse what cannot lie in /dev/shm, through which workers send batches; without it they die, or wait for ever.

    Args:
        num_ready: batches that workers hold ready.
        num_batches: batches that there are at all.
        bytes_per_batch: size of one.
        setting: names the number of workers in the message.
    """
    count, free = min(num_ready + HELD, num_batches), shared_memory()
    if count * bytes_per_batch > free:
        raise UserError(
            f"/dev/shm has {free / 2**20:.0f} MiB free, and the batches that {setting} hold ready there need "
            f"{count * bytes_per_batch / 2**20:.0f} MiB, {count} x {bytes_per_batch / 2**20:.1f}: {more(setting)}, "
            "or fewer of them"
        )


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
