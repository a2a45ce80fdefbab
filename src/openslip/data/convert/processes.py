"""Shards in parallel processes, their results in order."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from threading import Thread

from openslip.data.convert.shard import Entry, Task, write_shard
from openslip.errors import UserError

Result = tuple[Entry, list[str]]


def write_shards(tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Results in the order of the tasks, of which few more than there are processes are read ahead."""
    if workers == 1:
        yield from map(write_shard, tasks)
        return
    # spawn: a forked copy would inherit the lock on the folder and the thread of the progress bar.
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        rest = iter(tasks)
        waiting: deque[Future[Result]] = deque(executor.submit(write_shard, task) for task in islice(rest, workers + 2))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(executor.submit(write_shard, task) for task in islice(rest, 1))
            yield result
    except BrokenProcessPool as error:
        raise UserError(
            f"one of --workers {workers} processes was killed, for lack of memory perhaps: "
            "the same command goes on, also with fewer"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, which would wait for it for ever."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent alone tells of an interruption
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
