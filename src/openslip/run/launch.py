"""Joins the ranks that torchrun or srun has started, for commands that do not use Lightning's trainer."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist

from openslip.distributed import FOREVER, is_main_process, wait_up_to
from openslip.errors import UserError
from openslip.run import ranks

FIRST_PORT, NUM_PORTS = 15_000, 10_000  # under SLURM; Lightning, which trains, takes the same ones


class Place(NamedTuple):
    """The place of this process among those that a launcher has started."""

    rank: int
    world_size: int
    local_rank: int  # among the processes of this machine
    address: str  # `HOST:PORT` where the first rank listens


@contextmanager
def reported_once() -> Iterator[None]:
    """Within this context, let only the first rank report an error: all ranks raise it, from the same command line."""
    try:
        yield
    except UserError as error:
        if is_main_process():
            raise
        sys.exit(error.exit_code)


@contextmanager
def launched_ranks(device: str) -> Iterator[None]:
    """Join the other ranks within this context, if there are any; all end with the error of the first that fails.

    With CUDA, the current device becomes the GPU with the number of this process's local rank.

    Args:
        device: device of the command, such as `auto`, `cuda` or `cpu`.

    Raises:
        RankError: a rank has failed, and this is the rank that reports it; the others exit without a message.
    """
    place = launched()
    if place is None:
        yield
        return
    on_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"tcp://{place.address}",
        rank=place.rank,
        world_size=place.world_size,
        timeout=wait_up_to(FOREVER),  # one rank may fit a classifier for hours; a rank that has ended is noticed anyway
    )
    ranks.meet()
    try:
        with ranks.together():
            yield
    except ranks.RankError as error:
        is_first_alive = (error.failure.rank, error.exit_code) != (0, ranks.KILLED)
        if place.rank and is_first_alive:
            sys.exit(error.exit_code)
        raise
    dist.destroy_process_group()


def launched() -> Place | None:
    """Read this process's place from the environment; None if it is the only process."""
    environment = os.environ
    if environment.get("WORLD_SIZE", "1") != "1" and "RANK" in environment and "MASTER_ADDR" in environment:
        rank = int(environment["RANK"])
        return Place(
            rank,
            int(environment["WORLD_SIZE"]),
            int(environment.get("LOCAL_RANK", rank)),
            f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}",
        )
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":  # only srun sets it
        from pytorch_lightning.plugins.environments import SLURMEnvironment  # noqa: PLC0415  # its import is slow

        host = SLURMEnvironment.resolve_root_node_address(environment["SLURM_STEP_NODELIST"])
        # Another port for each step, because a job may run several at the same time.
        port = FIRST_PORT + (int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])) % NUM_PORTS
        return Place(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
            f"{environment.get('MASTER_ADDR', host)}:{environment.get('MASTER_PORT', port)}",
        )
    return None
