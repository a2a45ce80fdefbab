"""Weighted k-nearest-neighbour classification of frozen features. Wu et al. 2018, arXiv:1805.01978, section 3.4.

After `run`, `KNN.arrays` holds `labels` and `predictions`, int64 [N]: N test samples in the source's order.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation, top1_line
from openslip.evaluation.image_features import ImageFeatures, tower_features
from openslip.inference.bundle import Bundle, evaluating


class KNN(Evaluation):
    """Accuracy of labelling test images by their nearest training images, in per cent.

    Neighbours are found by cosine similarity of the image tower's features, before any projection. Metrics: `top1`,
    `chance` (100 / number of classes among the training images), `num_samples`.

    Args:
        title: name of the evaluation in its headline.
        train: labelled images, among which the neighbours are searched.
        test: labelled images to classify.
        k: number of nearest neighbours that vote (200 in the paper).
        temperature: divisor of the cosine in a vote's weight, exp(cosine / temperature) (0.07 in the paper).
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor refuses k, the temperature or the sources; `run` meets a sample without a label.
    """

    def __init__(
        self, *, title: str, train: Source, test: Source, k: int, temperature: float, batch_size: int, num_workers: int
    ) -> None:
        if not 1 <= k <= len(train):
            raise UserError(f"knn k={k}: expected 1 to {len(train)}, the number of training images")
        if temperature <= 0:
            raise UserError(f"knn temperature={temperature}: expected more than 0 (0.07 in the paper)")
        if len(test) == 0:
            raise UserError("knn: the test source has no samples")
        if train.classes and test.classes and list(train.classes) != list(test.classes):
            other = sorted(set(train.classes) ^ set(test.classes)) or list(test.classes)
            raise UserError(
                f"knn: train and test have different classes ({len(train.classes)} and {len(test.classes)}; {other[0]} "
                "is not in both), so that their labels do not match: give both the same class folders"
            )
        self.title = title
        self.train = train
        self.test = test
        self.k = k
        self.temperature = temperature
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        return top1_line(self.title, metrics)

    def run(self, bundle: Bundle) -> dict[str, float]:
        with evaluating(bundle.model, bundle.device):
            train_features, train_labels = self.encode(bundle, self.train)
            test_features, test_labels = self.encode(bundle, self.test)
            predictions = torch.cat(
                [
                    vote(queries, train_features, train_labels, k=self.k, temperature=self.temperature)
                    for queries in test_features.split(self.batch_size)
                ]
            )
        self.arrays = {"labels": test_labels.cpu().numpy(), "predictions": predictions.cpu().numpy()}
        return {
            "top1": 100 * int((predictions == test_labels).sum()) / len(test_labels),
            "chance": 100 / len(train_labels.unique()),
            "num_samples": float(len(test_labels)),
        }

    def encode(self, bundle: Bundle, source: Source) -> ImageFeatures:
        return tower_features(bundle, source, batch_size=self.batch_size, num_workers=self.num_workers)


def vote(
    queries: Float[Tensor, "queries width"],
    features: Float[Tensor, "train width"],
    labels: Int64[Tensor, " train"],
    *,
    k: int,
    temperature: float,
) -> Int64[Tensor, " queries"]:
    """Return for each query the label with the largest sum of exp(cosine / temperature) over its k nearest neighbours.

    If two labels have the same sum, the lower one wins.

    Args:
        queries: unit-length features to classify.
        features: unit-length features of the training images.
        labels: labels of the training images.
        k: number of neighbours that vote.
        temperature: divisor of the cosines in the exponent.
    """
    cosines, neighbours = (queries @ features.T).topk(k, dim=1)
    # Cosines relative to the nearest neighbour give the same winner, and never overflow at a small temperature.
    weights = ((cosines - cosines[:, :1]).cpu().double() / temperature).exp()  # [Q, k]
    classes, places = labels[neighbours].cpu().unique(return_inverse=True)  # a label may be any number
    votes = weights.new_zeros(len(queries), len(classes))
    votes.scatter_add_(1, places, weights)  # on the CPU, because a GPU adds in no fixed order
    return classes[votes.sort(dim=1, descending=True, stable=True).indices[:, 0]].to(queries.device)
