"""Skips the update of a step whose loss or gradient is not finite; too many such steps in a row end the run."""

# pyright: reportIncompatibleMethodOverride=false

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor

from openslip.distributed import all_max
from openslip.errors import NonFiniteError
from openslip.training.gradients import gradient_norm
from openslip.training.logging.late import Late
from openslip.training.pretrainer import Pretrainer

MOST_RESTORED = 2**18  # elements of a buffer; buffers with statistics are far smaller, and queues are larger


class Finite(pl.Callback):
    """Skips non-finite steps on all ranks; with a fused optimizer this needs no host synchronisation.

    All ranks make the same decision, because their gradients are the same. The optimizer changes neither
    parameters nor its state, and statistics and EMA weights stay unchanged. The batch counts as consumed. Buffers of
    more than `MOST_RESTORED` elements, and parameters that the objective's `after_step` changes, are not restored, so
    an objective must change neither its queue nor its teacher if `skipped` is true.

    If there is a loss scaler, it handles non-finite gradients. A step then counts as skipped only if its loss is not
    finite. A step with a finite loss that the scaler skips, because gradients overflow, does not count.

    Args:
        stop_after: number of skipped steps in a row that ends the run, with exit code 3.
    """

    def __init__(self, *, stop_after: int) -> None:
        self.stop_after = stop_after
        self.skipped = torch.zeros((), dtype=torch.int64)
        self.in_a_row = torch.zeros((), dtype=torch.int64)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        self.skipped, self.in_a_row = self.skipped.to(pl_module.device), self.in_a_row.to(pl_module.device)
        self.before = Late(torch.zeros_like(self.in_a_row))
        plugin = trainer.precision_plugin
        self.scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Pretrainer, batch: Any, batch_idx: int) -> None:
        self.statistics = [
            (buffer, buffer.clone()) for buffer in pl_module.buffers() if buffer.numel() <= MOST_RESTORED
        ]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: Pretrainer, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.scaled:
            pl_module.objective.skipped = all_max((~pl_module.terms["loss"].isfinite()).float()) > 0
            return
        pl_module.gradient_norm = norm = gradient_norm(optimizer)
        pl_module.objective.skipped = bad = ~norm.isfinite()
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
        elif bad.item():  # this synchronises, because only fused optimizers can skip on the device
            optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Pretrainer, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bad = pl_module.objective.skipped
        for buffer, before in self.statistics:
            buffer.copy_(torch.where(bad, before, buffer))
        self.skipped += bad
        pl_module.terms["skipped"] = self.skipped
        self.in_a_row = (self.in_a_row + 1) * bad
        before, self.before = self.before, Late(self.in_a_row)
        self.stop(int(before.read()), pl_module.step - 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        self.stop(int(self.in_a_row), pl_module.step)

    def stop(self, in_a_row: int, step: int) -> None:
        if in_a_row >= self.stop_after:
            raise NonFiniteError(
                f"loss or gradient was not finite in {in_a_row} steps in a row, up to step {step}: their updates were "
                "skipped and the checkpoints are valid; lower optim.lr or look at the data, and give another name="
            )

    def state_dict(self) -> dict[str, Tensor]:
        return {"skipped": self.skipped.cpu(), "in_a_row": self.in_a_row.cpu()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]


def refuse_non_finite(weights: dict[str, Tensor], step: int) -> None:
    """Raise an error if weights or statistics to be saved are not finite; they must be on the host already."""
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise NonFiniteError(
            f"{bad[0]} and {len(bad) - 1} more are not finite at step {step}: nothing is saved, and earlier "
            "checkpoints are valid; lower optim.lr, and give another name="
        )
