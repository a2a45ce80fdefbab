"""One training step: learning rate, features, loss, backward pass, gradient clipping, optimizer, clamping, EMA."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from openslip.data.datamodule import DataModule
from openslip.data.image.eval_transform import EvalTransform
from openslip.distributed import rank, to_first_rank, world_size
from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.inference.formats.openslip import describe
from openslip.objectives.objective import Objective
from openslip.optim import param_groups
from openslip.schedules import LearningRate
from openslip.text.tokenizer import Tokenizer
from openslip.training.gradients import clip_gradients, marked
from openslip.training.microbatch import loss_in_micro_batches, micro_batch_sizes


class Pretrainer(pl.LightningModule):
    """Trains a model with an objective; both are plain modules that do not depend on Lightning.

    Args:
        model: modules and parameters that inference needs.
        objective: loss, and modules that only training needs.
        optimizer: function from parameter groups to an optimizer, e.g. a partial `torch.optim.AdamW`.
        weight_decay: weight decay of the parameters to which `param_groups` applies it.
        layer_decay: the learning rate of a block, relative to that of the next block; None: all blocks have the same.
        clip_norm: largest global norm of the gradient; a larger gradient is clipped. None for no gradient clipping.
        ema_decay: decay of the EMA weights per step; None for no EMA weights. `averaged` holds the EMA weights.
        schedule: function from step to learning rate, over the length of the run.
        architecture: plain fields from which the model was built; saved in every checkpoint.
        tokenizer: tokenizer of the captions, saved in every checkpoint; None without text.
        transform: function from an image to the model's input in evaluations; saved in every checkpoint.
        init_from: files that the initial weights came from, and how position embeddings were resized; saved in every
            checkpoint.

    Attributes:
        step: number of global batches consumed, including those whose update was skipped.
        max_steps: length of the run in steps.
        micro_batch_size: samples encoded at a time on each rank; None means all. A callback sets it before
            the first step.
        averaged: copy of the model that holds the EMA weights; None if `ema_decay` is None.
        terms: metrics of the latest step, as scalars on the device.
        scheduled: the objective's attributes that depend on the step, by name, with their values in the latest step.
        gradient_norm: global norm of this step's gradient before clipping, if a callback has computed it, else None.
        provenance: content of the run's `env.json`, saved in every checkpoint; a callback sets it before each save.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        objective: Objective,
        optimizer: Callable[[list[dict]], torch.optim.Optimizer],
        weight_decay: float,
        layer_decay: float | None,
        clip_norm: float | None,
        ema_decay: float | None,
        schedule: LearningRate,
        architecture: dict[str, Any],
        tokenizer: Tokenizer | None,
        transform: EvalTransform,
        init_from: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        objective.prepare(model)
        self.model = model
        self.objective = objective
        self.make_optimizer = optimizer
        self.weight_decay = weight_decay
        self.layer_decay = layer_decay
        self.clip_norm = clip_norm
        self.ema_decay = ema_decay
        self.averaged = None if ema_decay is None else copy.deepcopy(model).requires_grad_(False)
        self.schedule = schedule
        self.max_steps = schedule.max_steps
        self.micro_batch_size: int | None = None
        self.architecture = architecture
        self.tokenizer = tokenizer
        self.transform = transform
        self.init_from = init_from or {}
        self.step = 0
        self.terms: dict[str, Tensor] = {}
        self.scheduled: dict[str, float] = {}
        self.gradient_norm: Tensor | None = None
        self.provenance: dict[str, Any] = {}
        self.loaded_rank_buffers: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(param_groups([self.model, self.objective], self.weight_decay, self.layer_decay))

    @property
    def evaluated(self) -> nn.Module:
        """The model to evaluate and to export: `averaged` if there are EMA weights, else `model`."""
        return self.model if self.averaged is None else self.averaged

    @property
    def bundle(self) -> Bundle:
        """The bundle of `evaluated`, with the weights of this step."""
        parts = self.evaluated, self.tokenizer, self.transform, self.architecture, self.device
        return Bundle(*parts, in_training=True)

    @property
    def bundles(self) -> dict[str, Bundle]:
        """Bundles with the weights of this step: `eval` has the trained weights, `eval_ema` the EMA weights if any."""
        trained = replace(self.bundle, model=self.model)
        return {"eval": trained} if self.averaged is None else {"eval": trained, "eval_ema": self.bundle}

    @property
    def data(self) -> DataModule:
        """The data module that `trainer.fit` was called with."""
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def samples_seen(self) -> int:
        """Number of samples consumed; on this x-axis, runs with different batch sizes can be compared."""
        return self.step * self.data.order.global_batch_size

    def on_train_start(self) -> None:
        # Not earlier: when DDP is set up, it copies all buffers of rank 0 to the other ranks.
        for name, buffer in self.objective.rank_buffers().items():
            if name in self.loaded_rank_buffers:
                buffer.copy_(self.loaded_rank_buffers[name])
        self.loaded_rank_buffers = {}

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        lr = self.schedule(self.step)
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.scheduled = self.objective.begin_step(self.step, self.max_steps)
        sizes = micro_batch_sizes(len(next(iter(batch.values()))), self.micro_batch_size)
        terms = loss_in_micro_batches(self.objective, self.model, batch, sizes)
        self.terms = {name: term.detach() for name, term in terms.items()}
        self.gradient_norm = None
        return marked(terms["loss"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.clip_norm is not None:
            self.terms["gradient_norm"] = clip_gradients(self.trainer, optimizer, self.clip_norm, self.gradient_norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Complete the step here. At the end of a batch, the hooks of callbacks run before the hook of this module, and
        # one of these callbacks saves the state.
        self.objective.after_step(self.model)
        if self.averaged is not None:
            self.average(self.averaged)
        self.step += 1
        self.data.consumed += 1

    @torch.no_grad()
    def average(self, averaged: nn.Module) -> None:
        """Update the EMA weights, unless `objective.skipped` is true; copy the buffers in any case."""
        assert self.ema_decay is not None
        made = ~self.objective.skipped
        kept: list[Tensor] = list(averaged.parameters())
        new: list[Tensor] = list(self.model.parameters())
        weights = {dtype: (1 - self.ema_decay) * made.to(dtype) for dtype in {weight.dtype for weight in new}}
        torch._foreach_lerp_(kept, new, [weights[weight.dtype] for weight in new])  # pyright: ignore[reportPrivateImportUsage]
        for statistic, newest in zip(averaged.buffers(), self.model.buffers(), strict=True):
            statistic.copy_(newest)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        entry = describe(self.architecture, self.tokenizer, self.transform)
        own = {"init_from": self.init_from, "step": self.step, "provenance": self.provenance}
        checkpoint["openslip"] = {**entry, **own}
        # This hook is called on all ranks, and rank 0 writes the file.
        checkpoint["rank_buffers"] = {name: to_first_rank(x) for name, x in self.objective.rank_buffers().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step = checkpoint["openslip"]["step"]
        refuse_other_tokenizer(checkpoint["openslip"].get("tokenizer"), self.tokenizer)
        # Both are missing in checkpoints of early versions.
        self.init_from = checkpoint["openslip"].get("init_from", {})
        self.provenance = checkpoint["openslip"].get("provenance", {})
        stored = checkpoint.get("rank_buffers", {})
        refuse_other_ranks(stored)
        self.loaded_rank_buffers = {name: buffers[rank()] for name, buffers in stored.items()}


def refuse_other_ranks(stored: dict[str, Tensor]) -> None:
    """Refuse to resume with another number of ranks if the checkpoint has buffers of each rank.

    Args:
        stored: buffers of all ranks, by name; the first dimension is the rank.
    """
    for name, buffers in stored.items():
        if (ranks := len(buffers)) != world_size():
            raise UserError(
                f"the checkpoint has a {name} of each of its {ranks} ranks, but the number of ranks is now "
                f"{world_size()} (trainer.devices, trainer.num_nodes): resume with {ranks}, or give another name="
            )


def refuse_other_tokenizer(stored: dict[str, Any] | None, tokenizer: Tokenizer | None) -> None:
    """Refuse to resume if the tokenizer's file has changed since the run started: ids would mean other tokens.

    Args:
        stored: the checkpoint's description of its tokenizer.
        tokenizer: the tokenizer of this start of the run.
    """
    settings = {} if tokenizer is None else tokenizer.settings()
    for key, value in (stored or {}).items():
        if key in settings and settings[key] != value:
            raise UserError(
                f"tokenizer: its {key} differ from those of the checkpoint: the file that it reads has changed since "
                "the run started; restore it, or give another name="
            )
