"""Gradient clipping and the detection of non-finite gradients; nothing here synchronises with the device."""

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def marked(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Multiply the loss by NaN if it is not finite, so that averaging gives NaN gradients on every rank."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def gradient_norm(optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
    """Return the global norm of the optimizer's gradients, a scalar on the device; NaN if there are no gradients."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return get_total_norm(gradients) if gradients else parameters[0].new_full((), torch.nan)


def clip_gradients(
    trainer: pl.Trainer, optimizer: torch.optim.Optimizer, max_norm: float, norm: Float[Tensor, ""] | None
) -> Float[Tensor, ""]:
    """Scale the optimizer's gradients to a global norm of at most `max_norm`, and return the norm before clipping.

    Called once per step, when the gradients of all micro-batches and ranks have been combined.
    Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.

    Args:
        trainer: provides the loss scaler, if there is one.
        optimizer: holds all trained parameters.
        max_norm: largest global L2 norm of the gradients after clipping.
        norm: global norm of the gradients if it has been computed already, else None.
    """
    plugin = trainer.precision_plugin
    # With fp16, Lightning has already unscaled the gradients, unless the optimizer is fused. A fused optimizer would
    # unscale them only in its step.
    if isinstance(plugin, MixedPrecision) and plugin.scaler is not None and optimizer.defaults.get("fused"):
        plugin.scaler.unscale_(optimizer)
    norm = gradient_norm(optimizer) if norm is None else norm
    clip_grads_with_norm_(
        [parameter for group in optimizer.param_groups for parameter in group["params"]], max_norm, norm
    )
    return norm
