"""Batches from worker processes: a wait for them ends with a signal, and what goes wrong in a worker is one line."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch.utils.data import DataLoader

from openslip import signals
from openslip.distributed import any_rank
from openslip.errors import UserError


class Loader(DataLoader):
    """Every rank fetches equally often: before each batch, and before the end, they agree whether to stop.

    An error of the user's is the same one line, whether a worker meets it or this process.

    Raises:
        Preempted: on all ranks, after a signal to any of them, also one that comes while a batch is waited for.
    """

    waited = 0.0  # seconds that whoever trains has waited for batches

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
            if "Original Traceback" in str(error):
                raise RuntimeError(str(error).strip().splitlines()[-1]) from error
            if isinstance(error, ConnectionError | EOFError) and self.num_workers:  # torch notices most other deaths
                raise RuntimeError("DataLoader worker ended while it sent a batch") from error
            raise


def start_worker(worker: int) -> None:
    """Workers are many, so each computes on one core; the main process tells them when to end."""
    torch.set_num_threads(1)
    signals.ignore(worker)
