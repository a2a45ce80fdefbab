"""Ends a run after its first step if the disk has no room for a checkpoint."""

# pyright: reportIncompatibleMethodOverride=false

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from openslip.distributed import from_first_rank, rank, world_size
from openslip.durable import unwritten
from openslip.errors import CheckpointError
from openslip.training.checkpoint_io import check_space, size_of
from openslip.training.pretrainer import Pretrainer


class Room(pl.Callback):
    """Compares the free disk space with twice the size of a checkpoint, which is known after the first step."""

    def __init__(self) -> None:
        self.is_checked = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_checked:
            return
        state = [pl_module.state_dict(), *(optimizer.state_dict() for optimizer in trainer.optimizers)]
        state += [pl_module.objective.rank_buffers()] * world_size()
        # Only the first rank writes; other nodes may not even have the folder.
        failure = no_room(Path(trainer.default_root_dir) / "checkpoints", size_of(state)) if rank() == 0 else None
        if failure := from_first_rank(failure):
            raise failure
        self.is_checked = True


def no_room(folder: Path, size: int) -> CheckpointError | None:
    """Return the error that a save of `size` bytes would meet now, or None if the disk has room for it."""
    try:
        check_space(folder, size)
    except CheckpointError as error:
        advice = "make room, or set runs_dir=DIR on another disk"
        return CheckpointError(f"no checkpoint could be saved ({error}): {advice}")
    except OSError as error:
        return CheckpointError(unwritten(folder, error))
    return None
