"""Novelty scores: how unlike all training images an image is; the larger, the more likely its class was never seen."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from openslip.errors import MissingPackage, UserError
from openslip.evaluation.knn import nearest

QUERIES = 1024  # images that are compared with the training images at a time


class Novelty(ABC):
    """Contract: a score of images, given the training images and a classifier of their classes."""

    @abstractmethod
    def __call__(
        self,
        train: Float[Tensor, "train width"],
        queries: Float[Tensor, "queries width"],
        scores: Float64[Tensor, "queries classes"],
    ) -> Float64[Tensor, " queries"]:
        """Return the novelty of each query, on the CPU.

        Args:
            train: features of the training images.
            queries: features of other images.
            scores: the classifier's scores of the queries, whose softmax are probabilities.
        """


class MaxSimilarity(Novelty):
    """Minus the largest cosine similarity with a training image."""

    def __call__(self, train: Tensor, queries: Tensor, scores: Tensor) -> Tensor:
        unit = F.normalize(train, dim=-1)
        largest = [nearest(rows, unit, 1)[0][:, 0] for rows in F.normalize(queries, dim=-1).split(QUERIES)]
        return -torch.cat(largest).cpu().double()


class Energy(Novelty):
    """Minus the logarithm of the sum over classes of exp(score). Liu et al. 2020, arXiv:2010.03759, equation 4, T = 1.

    For votes of nearest neighbours, whose scores are logarithms of votes, it is minus the logarithm of all votes.
    """

    def __call__(self, train: Tensor, queries: Tensor, scores: Tensor) -> Tensor:
        return -scores.logsumexp(dim=1).cpu()


class LocalOutlierFactor(Novelty):
    """Local outlier factor: density around the nearest training images over that around the image.

    Breunig et al. 2000, SIGMOD Record 29(2), 93-104, as scikit-learn computes it, of unit-length features. It compares
    all pairs of training images: 10,000 take seconds, 1,000,000 hours.

    Args:
        neighbours: number of nearest training images (20 is scikit-learn's default).

    Raises:
        MissingPackage: scikit-learn is not installed.
        UserError: the number is not positive, or, when called, there are no more training images than neighbours.
    """

    def __init__(self, *, neighbours: int) -> None:
        if neighbours < 1:
            raise UserError(f"neighbours={neighbours}: the local outlier factor expected at least 1")
        try:
            from sklearn.neighbors import LocalOutlierFactor as Estimator  # noqa: PLC0415 - of the extra `eval`
        except ImportError as error:
            raise MissingPackage('the local outlier factor needs scikit-learn; pip install "openslip[eval]"') from error
        self.neighbours = neighbours
        self.estimator = Estimator(n_neighbors=neighbours, novelty=True)

    def __call__(self, train: Tensor, queries: Tensor, scores: Tensor) -> Tensor:
        if len(train) <= self.neighbours:
            raise UserError(
                f"neighbours={self.neighbours}: the local outlier factor expected fewer than the "
                f"{len(train)} training images"
            )
        known, others = (F.normalize(rows.cpu().double(), dim=-1).numpy() for rows in (train, queries))
        return torch.from_numpy(-self.estimator.fit(known).score_samples(others))
