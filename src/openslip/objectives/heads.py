"""Projection heads of objectives, with batch norm over the whole global batch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn, rsqrt

from openslip.distributed import world_size
from openslip.models.batch_norm import GlobalBatchNorm, at_least_float32, global_statistics, normalise, update_running


class HeadBatchNorm(GlobalBatchNorm):
    """Batch norm over the global batch; `views` normalises several views at once, with separate statistics for each."""

    def forward(self, input: Float[Tensor, "local features"]) -> Float[Tensor, "local features"]:  # noqa: A002
        return self.views(input)[0] if self.training else super().forward(input)

    def views(self, *views: Float[Tensor, "local features"]) -> list[Float[Tensor, "local features"]]:
        """Normalise each view with its own batch statistics; ranks exchange the statistics of all views in one call."""
        if world_size() == 1:
            return [self.in_one_process(at_least_float32(view)) for view in views]
        # Statistics are computed per channel. If views are concatenated along the channels, their statistics are
        # therefore separate.
        x = torch.cat([at_least_float32(view) for view in views], dim=1)
        with torch.no_grad():
            mean, variance, count = global_statistics(x)
            for view in zip(mean.chunk(len(views)), variance.chunk(len(views)), strict=True):
                update_running(self, *view, count)
        weight, bias = self.weight.repeat(len(views)), self.bias.repeat(len(views))
        return list(normalise(x, weight, bias, mean, rsqrt(variance + self.eps), count).chunk(len(views), dim=1))

    def in_one_process(self, x: Float[Tensor, "local features"]) -> Float[Tensor, "local features"]:
        mean, variance, count = global_statistics(x)
        update_running(self, mean.detach(), variance.detach(), count)
        y = (x - mean) * rsqrt(variance + self.eps)
        return y * self.weight + self.bias


class ProjectionHead(nn.Sequential):
    """A sequence of layers; `views` applies the layers to several views with few exchanges between ranks."""

    def views(self, *views: Float[Tensor, "local width"]) -> list[Float[Tensor, "local output"]]:
        """Apply the head to each view; for each batch norm, ranks exchange the statistics of all views in one call."""
        outputs = list(views)
        for layer in self:
            if isinstance(layer, HeadBatchNorm) and layer.training:
                outputs = layer.views(*outputs)
            else:
                outputs = [layer(x) for x in outputs]
        return outputs


def projection_head(width: int, hidden: int, output: int) -> ProjectionHead:
    """Build SLIP's SSL head (arXiv:2112.12750, section 3.2): two blocks of linear, batch norm, ReLU, then linear."""
    return ProjectionHead(
        nn.Linear(width, hidden),
        HeadBatchNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        HeadBatchNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, output),
    )
