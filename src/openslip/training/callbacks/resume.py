"""Restores two things when a run is resumed: the random states of all ranks, and the rows of `metrics.csv`."""

# pyright: reportIncompatibleMethodOverride=false

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from openslip.distributed import is_main_process, of_all_ranks, rank
from openslip.errors import CheckpointError
from openslip.terminal import inform
from openslip.training.logging.csv_logger import CsvLogger
from openslip.training.pretrainer import Pretrainer


class Resume(pl.Callback):
    """Saves the random states of all ranks, restores them before the next step, and truncates `metrics.csv`.

    Args:
        resumes: whether this rank sees checkpoints in the run's folder.
        rows: logger of `metrics.csv`.
        former_steps: length of the run in steps before this start extends it; None if this start does not extend it.
    """

    def __init__(self, *, resumes: bool, rows: CsvLogger, former_steps: int | None = None) -> None:
        self.resumes = resumes
        self.rows = rows
        self.former_steps = former_steps
        self.loaded: list[dict[str, Any]] = []

    def setup(self, trainer: pl.Trainer, pl_module: Pretrainer, stage: str) -> None:
        all_resume = of_all_ranks(self.resumes)
        if len(set(all_resume)) > 1:  # otherwise the ranks would wait for each other forever
            blind = ", ".join(str(number) for number, resumes in enumerate(all_resume) if not resumes)
            raise CheckpointError(
                f"{trainer.default_root_dir}: rank {blind} cannot see the checkpoints that the other ranks see: "
                "runs_dir= must be one folder for all nodes; if it is, repeat the command once the file server shows "
                "the checkpoints to every node"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        self.rows.cut_back(pl_module.step)
        if is_main_process() and self.former_steps is not None:
            inform(
                f"extends {trainer.default_root_dir} from {self.former_steps} to {pl_module.max_steps} steps; "
                f"the longer schedule applies from step {pl_module.step}"
            )
        if is_main_process() and pl_module.step:
            inform(f"Resumed at step {pl_module.step} of {pl_module.max_steps}.")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        assert pl_module.step == trainer.global_step == pl_module.data.consumed
        # This is the last hook before a step, so nothing can draw random numbers in between.
        if rank() < len(self.loaded):
            set_random_state(self.loaded[rank()])
        elif rank():  # ranks have different samples, so they must draw different random numbers
            torch.manual_seed(torch.initial_seed() + 1_000_003 * rank() + pl_module.step)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Pretrainer, checkpoint: dict[str, Any]) -> None:
        self.rows.sync()  # a run resumed from this checkpoint must find the rows of all earlier steps

    def state_dict(self) -> dict[str, Any]:
        return {"random": of_all_ranks(random_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict["random"]


def random_state() -> dict[str, Any]:
    """Return the random states of Python, NumPy, torch and this rank's GPU, as types that a checkpoint may hold."""
    numpy_state: Any = np.random.get_state()
    _, keys, position, has_gauss, cached = numpy_state
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore random states that `random_state` returned."""
    random.setstate(state["python"])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
