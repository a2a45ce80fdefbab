"""Two real gloo ranks, started once per test session; functions to run there live in importable modules."""

import os
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from forked import context, fork


class Ranks:
    """`ranks(function, *arguments)` returns what the function returned on each rank."""

    def __init__(self, world_size: int) -> None:
        self.store = tempfile.NamedTemporaryFile(delete=False).name  # noqa: SIM115
        os.unlink(self.store)
        self.tasks = [context.Queue() for _ in range(world_size)]
        self.results = [context.Queue() for _ in range(world_size)]
        self.processes = [
            fork(serve, rank, world_size, self.store, self.tasks[rank], self.results[rank])
            for rank in range(world_size)
        ]

    def __call__(self, function: Callable, *arguments: Any) -> list[Any]:
        for tasks in self.tasks:
            tasks.put((function, arguments))
        answers = [results.get(timeout=120) for results in self.results]
        for failed, answer in answers:
            assert not failed, answer
        return [answer for _, answer in answers]

    def close(self) -> None:
        for tasks in self.tasks:
            tasks.put(None)
        for process in self.processes:
            process.join(timeout=10)
            process.kill()


def serve(rank: int, world_size: int, store: str, tasks: Any, results: Any) -> None:
    warnings.simplefilter("error")  # as pytest has it in its own process
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # its successor would sync heads' buffers
    warnings.filterwarnings("ignore", r"`?torch\.distributed\.[\w.]*all_gather\w*`? is deprecated")  # open_clip's
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    while (task := tasks.get()) is not None:
        function, arguments = task
        try:
            results.put((False, function(*arguments)))
        except Exception:
            results.put((True, traceback.format_exc()))
    dist.destroy_process_group()
