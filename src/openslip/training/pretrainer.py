"""One training step: features -> loss -> backward -> learning rate and optimizer -> clamp."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from openslip.data.datamodule import DataModule
from openslip.objectives.objective import Objective
from openslip.optim import WarmupCosine, param_groups
from openslip.training.finite import marked
from openslip.training.microbatch import even_slices, loss_in_slices


class Pretrainer(pl.LightningModule):
    """Trains a model with an objective; both are plain modules that know nothing of Lightning.

    Args:
        model: what inference needs.
        objective: what training needs beside it.
        optimizer: parameter groups to optimizer, e.g. a partial `torch.optim.AdamW`.
        weight_decay: of the decayed group.
        schedule: step to learning rate.
        micro_batch_size: samples per slice and rank; None for one slice.
        description: plain fields from which `openslip.load` rebuilds the model; saved in every checkpoint.

    Attributes:
        step: global batches consumed, whether their update was skipped or not.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        objective: Objective,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer],
        weight_decay: float,
        schedule: WarmupCosine,
        micro_batch_size: int | None,
        description: dict[str, Any],
    ) -> None:
        super().__init__()
        objective.setup(model)
        self.model = model
        self.objective = objective
        self.make_optimizer = optimizer
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.micro_batch_size = micro_batch_size
        self.description = description
        self.step = 0
        self.terms: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(param_groups([self.model, self.objective], self.weight_decay))

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        lr = self.schedule(self.step)
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        for group in optimizer.param_groups:
            group["lr"] = lr

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        sizes = even_slices(len(next(iter(batch.values()))), self.micro_batch_size)
        terms = loss_in_slices(self.objective, self.model, batch, sizes)
        self.terms = {name: term.detach() for name, term in terms.items()}
        return marked(terms["loss"])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # All of a step ends here: callbacks come before this module at the end of a batch, and one of them saves.
        self.objective.after_step(self.model)
        self.step += 1
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(data, DataModule):
            data.consumed += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["openslip"] = {**self.description, "step": self.step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step = checkpoint["openslip"]["step"]
