"""Batch norm over the samples of all ranks. Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1.

Unlike `torch.nn.SyncBatchNorm`, this batch norm also accepts tensors on the CPU. Its ranks exchange sums of
squared deviations from the mean. The ranks of `SyncBatchNorm` exchange invstd = 1 / sqrt(variance + eps), and recover
the variance as 1 / invstd^2 - eps. The recovered variance is inaccurate if it is far smaller than eps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from openslip.distributed import all_sum, gather, world_size


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the global batch; `synchronise` replaces the batch norms of PyTorch and timm with it.

    If it replaces timm's `BatchNormAct2d`, it also applies the dropout `drop` and the activation `act` of that layer.

    Attributes:
        runs_again: whether gradient checkpointing may run the layer a second time, in the backward pass.
    """

    runs_again: bool = False
    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        y = batch_norm(self, input)
        return self.act(self.drop(y)) if "act" in self._modules else y


_REPLACED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d)


def synchronise(model: nn.Module, *, runs_again: bool) -> None:
    """Make a model's batch norms use global-batch statistics; parameters and buffers are unchanged.

    Only layers whose class is exactly one of `_REPLACED` are changed; subclasses, such as `RankBatchNorm`, are not.

    Args:
        model: module whose batch norms are changed in place.
        runs_again: whether gradient checkpointing may run the batch norms a second time, in the backward pass.
    """
    for layer in model.modules():
        if type(layer) in _REPLACED:
            layer.__class__ = GlobalBatchNorm
        if isinstance(layer, GlobalBatchNorm):
            layer.runs_again = runs_again


def mixes_samples(layer: nn.Module) -> bool:
    """Whether a layer's output for a sample depends on the other samples of the batch."""
    if isinstance(layer, _BatchNorm):
        return layer.training or layer.running_mean is None
    # Some layers that are no batch norm, such as EvoNorm-B, also have a running variance. timm's frozen batch norm has
    # one too, but it has no parameters and never uses batch statistics.
    has_weights = next(layer.parameters(recurse=False), None) is not None
    return layer.training and has_weights and "running_var" in dict(layer.named_buffers(recurse=False))


def is_synchronised(layer: nn.Module) -> bool:
    """Whether a layer computes its batch statistics over the samples of all ranks."""
    return layer.training and isinstance(layer, GlobalBatchNorm)


def batch_norm(layer: GlobalBatchNorm, x: Tensor) -> Tensor:
    """Normalise `x` with global-batch statistics in training, and with running statistics in evaluation."""
    if not layer.training:
        mean, variance = layer.running_mean, layer.running_var
        return F.batch_norm(x, mean, variance, layer.weight, layer.bias, mean is None, 0.0, layer.eps)
    # Compiled code cannot test whether it runs in a backward pass. If `runs_again` is false, this layer never does.
    if torch.compiler.is_compiling() and world_size() == 1 and not layer.runs_again:
        return _in_one_process(layer, x, updates=True)
    return _in_training(layer, x)


@torch.compiler.disable()
def _in_training(layer: _BatchNorm, x: Tensor) -> Tensor:
    # Inside a backward pass, the layer runs only to recompute activations. The forward pass has already updated the
    # running statistics, and they must not be updated twice.
    updates = torch._C._current_graph_task_id() == -1
    if world_size() == 1:
        return _in_one_process(layer, x, updates=updates)
    with torch.no_grad():
        mean, variance, count = global_statistics(at_least_float32(x))
        if updates:
            update_running(layer, mean, variance, count)
    weight = torch.ones_like(mean) if layer.weight is None else layer.weight
    bias = torch.zeros_like(mean) if layer.bias is None else layer.bias
    return normalise(x, weight, bias, mean, torch.rsqrt(variance + layer.eps), count)


def _in_one_process(layer: _BatchNorm, x: Tensor, *, updates: bool) -> Tensor:
    mean, variance = layer.running_mean, layer.running_var
    if not updates:  # let the kernel update copies, which are discarded
        mean, variance = (None if running is None else running.clone() for running in (mean, variance))
    elif layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
    return F.batch_norm(x, mean, variance, layer.weight, layer.bias, True, _momentum(layer), layer.eps)


def global_statistics(
    x: Float[Tensor, "local channels *size"],
) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"], Float[Tensor, ""]]:
    """Return mean, biased variance and number of values per channel, over all ranks.

    Gradients flow through them only if there is a single rank; with several, `normalise` computes the gradient of `x`.
    Ranks exchange count, mean and sum of squared deviations from the mean in one call, and combine them without
    cancellation: Chan et al. 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """
    dims = [0, *range(2, x.ndim)]
    values, channels = x.numel() // x.shape[1], x.shape[1]
    if values * world_size() < 2:
        raise ValueError("batch norm needs a global batch of at least 2 samples, got 1: raise global_batch_size")
    # Not `new_tensor`, because it copies from the host and synchronises with the device
    count = x.new_full((), float(values))
    mean = x.sum(dim=dims) / count
    squares = (x - per_channel(mean, x)).square().sum(dim=dims)
    if world_size() == 1:
        return mean, squares / count, count
    of_ranks = gather(torch.cat([mean, squares, count[None]])[None], with_grad=False)
    means, squares, counts = of_ranks.split([channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (counts * means).sum(dim=0) / count
    squares = (squares + counts * (means - mean).square()).sum(dim=0)
    return mean, squares / count, count


@torch.no_grad()
def update_running(layer: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """Update the running statistics as PyTorch does, with the unbiased variance: variance * n / (n - 1)."""
    if layer.running_mean is None or layer.running_var is None or layer.num_batches_tracked is None:
        return
    layer.num_batches_tracked.add_(1)
    momentum = _momentum(layer)
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
    layer.running_var.lerp_((variance * count / (count - 1)).to(layer.running_var.dtype), momentum)


def _momentum(layer: _BatchNorm) -> float:
    """Return the weight of the newest batch in the running statistics; `momentum=None` averages over all batches."""
    if layer.momentum is None and layer.num_batches_tracked is not None:
        return 1 / float(layer.num_batches_tracked)
    return layer.momentum or 0.0


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def per_channel(statistic: Float[Tensor, " channels"], x: Tensor) -> Tensor:
    """Reshape a per-channel statistic so that it broadcasts over the samples and spatial dimensions of `x`."""
    return statistic.view(-1, *(x.ndim - 2) * (1,))


def normalise(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, count: Tensor) -> Tensor:
    """Return `(x - mean) * scale * weight + bias`; in the gradient, `mean` and `scale` depend on all ranks' `x`.

    `scale` is 1 / sqrt(variance + eps); the paper's gamma is `weight`.
    """
    y: Any = _Normalise.apply(x, weight, bias, mean, scale, count)
    return y


class _Normalise(torch.autograd.Function):
    """Normalise `x` with statistics that depend on `x`; `x` is the only activation saved for the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, count: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, mean, scale, count)
        normal = (at_least_float32(x) - per_channel(mean, x)) * per_channel(scale, x)
        return (normal * per_channel(weight, x) + per_channel(bias, x)).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, scale, count = ctx.saved_tensors
        normal = (at_least_float32(x) - per_channel(mean, x)) * per_channel(scale, x)
        g = at_least_float32(gradient)
        dims = [0, *range(2, x.ndim)]
        of_weight, of_bias = (g * normal).sum(dim=dims), g.sum(dim=dims)
        # The losses of all ranks depend on this rank's samples through the mean and the variance.
        by_variance, by_mean = all_sum(torch.stack([of_weight, of_bias])) / count
        of_x = g - per_channel(by_mean, x) - normal * per_channel(by_variance, x)
        of_x = of_x * per_channel(scale * weight, x)
        return of_x.to(x.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None, None
