"""Classifiers of frozen features: a fit gives a function from features to scores of classes."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from openslip.errors import UserError
from openslip.evaluation.knn import nearest, vote
from openslip.evaluation.logistic import fit_logistic

QUERIES = 1024  # images that are classified at a time


class FrozenClassifier(ABC):
    """Contract: a method of classification with its hyperparameters."""

    @abstractmethod
    def fit(
        self, features: Float[Tensor, "train width"], places: Int64[Tensor, " train"], num_classes: int
    ) -> Callable[[Tensor], Tensor]:
        """Return a function from features [N, width] to float64 scores [N, classes], whose softmax are probabilities.

        Args:
            features: features of the training images.
            places: their classes, from 0 to num_classes - 1, all of which occur.
            num_classes: number of classes.
        """


class NearestNeighbours(FrozenClassifier):
    """Votes of the nearest neighbours, as in `openslip.evaluation.knn`; a class's score is the logarithm of its votes.

    Args:
        k: number of neighbours that vote.
        temperature: divisor of the cosine in a vote's weight.
    """

    def __init__(self, *, k: int, temperature: float) -> None:
        if k < 1 or temperature <= 0:
            raise UserError(f"k={k}, temperature={temperature}: expected at least 1 neighbour and more than 0")
        self.k = k
        self.temperature = temperature

    def fit(self, features: Tensor, places: Tensor, num_classes: int) -> Callable[[Tensor], Tensor]:
        if self.k > len(features):
            raise UserError(f"k={self.k}: expected 1 to {len(features)}, the number of training images")
        unit = F.normalize(features, dim=-1)

        def scores(queries: Tensor) -> Tensor:
            blocks = []
            for rows in F.normalize(queries, dim=-1).split(QUERIES):
                cosines, neighbours = nearest(rows, unit, self.k)
                votes = vote(cosines, places[neighbours].cpu(), num_classes, self.temperature)
                # `vote` is relative to the nearest neighbour.
                blocks.append(votes.log() + cosines[:, :1].cpu().double() / self.temperature)
            return torch.cat(blocks)

        return scores


class LogisticRegression(FrozenClassifier):
    """Multinomial logistic regression, as in `openslip.evaluation.logistic`.

    Args:
        c: factor on the sum of cross entropies, scikit-learn's `C`.
        decrease: the fit ends when ten iterations decrease its objective by no more than this share.
        max_iterations: largest number of iterations of L-BFGS.
    """

    def __init__(self, *, c: float, decrease: float, max_iterations: int) -> None:
        if c <= 0:
            raise UserError(f"c={c}: expected a number above 0")
        self.c = c
        self.decrease = decrease
        self.max_iterations = max_iterations

    def fit(self, features: Tensor, places: Tensor, num_classes: int) -> Callable[[Tensor], Tensor]:
        return fit_logistic(
            features.double(), places, self.c, decrease=self.decrease, max_iterations=self.max_iterations
        ).scores
