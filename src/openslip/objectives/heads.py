"""Batch norm over the samples of all ranks. Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openslip.distributed import all_sum, world_size


class GlobalBatchNorm(nn.BatchNorm1d):
    """Statistics of the global batch on any backend; `torch.nn.SyncBatchNorm` refuses tensors on the CPU.

    Parameters, buffers and running updates (variance with n / (n - 1)) are those of `torch.nn.BatchNorm1d`.
    """

    def forward(self, input: Float[Tensor, "local features"]) -> Float[Tensor, "local features"]:  # noqa: A002
        if not self.training:
            return super().forward(input)
        if len(input) * world_size() < 2:
            raise ValueError("batch norm needs a global batch of at least 2 samples, got 1: raise global_batch_size")
        x = input if input.dtype == torch.float64 else input.float()
        count = all_sum(x.new_full((), float(len(x))))  # `new_tensor` would copy from the host and wait
        mean = all_sum(x.sum(dim=0)) / count
        variance = all_sum((x - mean).square().sum(dim=0)) / count  # centred: E[x^2] - E[x]^2 cancels
        self._update(mean.detach(), variance.detach() * count / (count - 1))
        y = (x - mean) * torch.rsqrt(variance + self.eps)
        assert self.weight is not None
        return y * self.weight + self.bias

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


def projection_head(width: int, hidden: int, output: int) -> nn.Sequential:
    """SLIP's three-layer SSL head: linear, batch norm, ReLU, twice, then linear. Mu et al. 2021, section 3.2."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        GlobalBatchNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        GlobalBatchNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, output),
    )
