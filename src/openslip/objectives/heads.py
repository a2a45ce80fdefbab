"""Heads of objectives, which see the whole global batch."""

from jaxtyping import Float
from torch import Tensor, nn, rsqrt

from openslip.models.batch_norm import GlobalBatchNorm, at_least_float32, global_statistics, update_running


class HeadBatchNorm(GlobalBatchNorm):
    """Batch norm of the global batch, the same operations on one process and on several."""

    def forward(self, input: Float[Tensor, "local features"]) -> Float[Tensor, "local features"]:  # noqa: A002
        if not self.training:
            return super().forward(input)
        x = at_least_float32(input)
        mean, variance, count = global_statistics(x)
        update_running(self, mean.detach(), variance.detach(), count)
        y = (x - mean) * rsqrt(variance + self.eps)
        return y * self.weight + self.bias


def projection_head(width: int, hidden: int, output: int) -> nn.Sequential:
    """SLIP's three-layer SSL head: linear, batch norm, ReLU, twice, then linear. Mu et al. 2021, section 3.2."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        HeadBatchNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        HeadBatchNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, output),
    )
