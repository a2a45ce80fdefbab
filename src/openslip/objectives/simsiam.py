"""SimSiam: two views of an image predict each other's projection. Chen and He 2020, arXiv:2011.10566, algorithm 1."""

from jaxtyping import Float
from torch import Tensor, nn

from openslip.objectives.heads import HeadBatchNorm, ProjectionHead
from openslip.objectives.similarity import unit_length

Pair = list[Float[Tensor, "local width"]]  # one tensor for each view


class RankBatchNorm(nn.BatchNorm1d):
    """PyTorch's batch norm with the statistics of this rank only, one view after the other: docs/NUMERICS.md#declip."""


class SimSiam(nn.Module):
    """Projector and predictor of DeCLIP's SimSiam term, which differ from those of SimSiam's paper in width only.

    Args:
        width: width of the features of both views.
        hidden: width of the projector's layers and of its output.
        bottleneck: width of the predictor's hidden layer.
        rank_batch_norm: whether batch norm uses the statistics of each rank, as published, and not those of the global
            batch.
    """

    def __init__(self, *, width: int, hidden: int, bottleneck: int, rank_batch_norm: bool) -> None:
        super().__init__()
        norm = RankBatchNorm if rank_batch_norm else HeadBatchNorm
        self.projector = ProjectionHead(
            nn.Linear(width, hidden),
            norm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            norm(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            norm(hidden),
        )
        self.predictor = ProjectionHead(
            nn.Linear(hidden, bottleneck), norm(bottleneck), nn.ReLU(), nn.Linear(bottleneck, hidden)
        )

    def forward(self, view1: Float[Tensor, "local dim"], view2: Float[Tensor, "local dim"]) -> tuple[Pair, Pair]:
        """Return the predictions and the projections of both views; each view has its own batch statistics."""
        projections = self.projector.views(view1, view2)
        return self.predictor.views(*projections), projections


def simsiam_loss(predictions: Pair, projections: Pair) -> Float[Tensor, ""]:
    """Return the mean negative cosine of each view's prediction with the other view's projection, which is detached."""
    cosines = [
        (unit_length(prediction) * unit_length(projection.detach())).sum(dim=1).mean()
        for prediction, projection in zip(predictions, reversed(projections), strict=True)
    ]
    return -sum(cosines) / 2  # pyright: ignore[reportReturnType]
