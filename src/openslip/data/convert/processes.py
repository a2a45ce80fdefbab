"""Write shards in parallel processes, with the results in order."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from threading import Thread

from openslip.data.convert.manifest import Entry
from openslip.data.convert.shard import Task, write_shard
from openslip.errors import UserError


def write_shards(tasks: Iterable[Task], workers: int) -> Iterator[tuple[Entry, list[str]]]:
    """Write the shards of all tasks, and yield the results in order; only a few tasks are read ahead."""
    if workers == 1:
        yield from map(write_shard, tasks)
        return
    # spawn: a forked process would inherit locks that threads of the caller hold.
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        futures = (executor.submit(write_shard, task) for task in tasks)
        pending = deque(islice(futures, workers + 2))
        while pending:
            result = pending.popleft().result()
            pending.extend(islice(futures, 1))
            yield result
    except BrokenProcessPool as error:
        raise UserError(
            f"one of --workers {workers} processes was killed, perhaps for lack of memory: "
            "the same command resumes, also with fewer"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker process when its parent has been killed and so cannot end it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # only the parent reports an interruption
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
