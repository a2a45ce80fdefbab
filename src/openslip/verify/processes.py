"""Run a function on several ranks of this machine."""

import multiprocessing
from collections.abc import Callable

from torch.multiprocessing.spawn import start_processes


def run_on_ranks(function: Callable[..., None], world: int, *arguments: object) -> None:
    """Run `function(rank, *arguments)` in `world` processes; what one of them raises ends the others and is raised.

    The processes are forked off a server that has imported PyTorch, which takes longer than most of what they run.
    """
    multiprocessing.set_forkserver_preload([function.__module__])
    start_processes(function, arguments, nprocs=world, start_method="forkserver")
