"""Lightning's training loop, with messages for the errors that a user can correct."""

from pathlib import Path

import pytorch_lightning as pl

from openslip.data.datamodule import DataModule
from openslip.errors import UserError, first_line
from openslip.training.pretrainer import Pretrainer

NOT_DETERMINISTIC = " does not have a deterministic implementation"  # part of PyTorch's error message


def optimise(trainer: pl.Trainer, pretrainer: Pretrainer, data: DataModule, resumed: Path | None) -> None:
    """Train with Lightning; convert errors that a user can correct to a UserError."""
    try:
        trainer.fit(pretrainer, datamodule=data, ckpt_path=resumed)
    except RuntimeError as error:
        if "not used in producing the loss" in str(error):
            raise UserError("parameters get no gradient: add +trainer.strategy.find_unused_parameters=true") from error
        if NOT_DETERMINISTIC in str(error):
            operation = str(error).partition(NOT_DETERMINISTIC)[0]
            raise UserError(
                f"trainer.deterministic=true: {operation} cannot repeat its numbers on this device: set it to false, "
                "or to warn to be told of all such operations"
            ) from error
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise UserError(f"torch.compile failed ({first_line(error)}): set compile=false") from error
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that loads data was killed ({first_line(error)}), often because memory ran out: "
            "lower data.prefetch_gb or data.num_workers; the same command resumes the run"
        ) from error
