"""Weighted k-nearest-neighbour classification of frozen features. Wu et al. 2018, arXiv:1805.01978, section 3.4.

The protocol is DINO's (facebookresearch/dino, eval_knn.py): features before any projection, at unit length. After
`run`, `KNN.arrays` holds `labels` and `predictions` (of the first k), int64 [N]: N test samples in the source's order;
and `classnames`, if the source names its classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation, top1_line
from openslip.evaluation.features import gather_batches, rank_batches
from openslip.evaluation.frozen_features import classes_of, predictions_of, refuse_other_classes
from openslip.evaluation.image_features import ImageFeatures, tower_features
from openslip.evaluation.metrics import MIN_TOP5, best_classes, top_k_accuracy
from openslip.inference.bundle import Bundle, evaluating

BLOCK = 2**16  # training images that are compared with a batch of test images at a time


class KNN(Evaluation):
    """Accuracy of labelling test images by their nearest training images, in per cent.

    Neighbours are found by cosine similarity of the image tower's features, before any projection. Metrics: `top1` and
    `top5` of the first k, `top1_kK` and `top5_kK` of every K if there are several, `chance` (100 / number of classes
    among the training images), `num_samples`. `top5` needs 5 classes; fewer than 5 neighbours give that many guesses.

    Args:
        title: name of the evaluation in its headline.
        train: labelled images, among which the neighbours are searched.
        test: labelled images to classify.
        k: number of nearest neighbours that vote, or a list of several such numbers (DINO: 10, 20, 100, 200).
        temperature: divisor of the cosine in a vote's weight, exp(cosine / temperature) (0.07 in the paper).
        batch_size: images per forward pass, and test images compared with training images at a time.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor refuses k, the temperature or the sources; `run` meets a sample without a label.
    """

    def __init__(
        self,
        *,
        title: str,
        train: Source,
        test: Source,
        k: int | Sequence[int],
        temperature: float,
        batch_size: int,
        num_workers: int,
    ) -> None:
        counts = [k] if isinstance(k, int) else list(k)
        if not counts or len(set(counts)) < len(counts):
            raise UserError(f"knn k={k}: expected a number, or a list of different numbers")
        for count in counts:
            if not 1 <= count <= len(train):
                raise UserError(f"knn k={count}: expected 1 to {len(train)}, the number of training images")
        if temperature <= 0:
            raise UserError(f"knn temperature={temperature}: expected more than 0 (0.07 in the paper)")
        if len(test) == 0:
            raise UserError("knn: the test source has no samples")
        refuse_other_classes("knn", train, test, "test")
        self.title = title
        self.train = train
        self.test = test
        self.counts = counts
        self.temperature = temperature
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        return top1_line(self.title, metrics)

    def run(self, bundle: Bundle) -> dict[str, float]:
        train_features, train_labels = self.encode(bundle, self.train)
        test_features, test_labels = self.encode(bundle, self.test)
        classes = classes_of(train_labels)
        num_test, num_classes = len(test_labels), len(classes.labels)
        with evaluating(bundle.model, bundle.device):
            ranked = [
                rank_classes(
                    test_features[rows],
                    train_features,
                    classes.places,
                    num_classes=num_classes,
                    counts=self.counts,
                    temperature=self.temperature,
                )
                for rows in rank_batches(num_test, self.batch_size)
            ]
            top = gather_batches(ranked, num_test, self.batch_size, bundle.device).cpu().numpy()  # [N, counts, guesses]
        places = classes.places_of(test_labels).cpu().numpy()
        labels = classes.labels.cpu().numpy()
        self.arrays = predictions_of(self.test, test_labels.cpu().numpy(), labels[top[:, 0, 0]])
        metrics = accuracies(top[:, 0], places, num_classes, self.counts[0])
        if len(self.counts) > 1:
            for column, count in enumerate(self.counts):
                accuracy = accuracies(top[:, column], places, num_classes, count)
                metrics |= {f"{name}_k{count}": value for name, value in accuracy.items()}
        return {**metrics, "chance": 100 / num_classes, "num_samples": float(num_test)}

    def encode(self, bundle: Bundle, source: Source) -> ImageFeatures:
        return tower_features(bundle, source, batch_size=self.batch_size, num_workers=self.num_workers)


def accuracies(
    top: Int64[np.ndarray, "test guesses"], places: Int64[np.ndarray, " test"], num_classes: int, k: int
) -> dict[str, float]:
    """Return top-1 and, with at least 5 classes, top-5 accuracy; k neighbours give at most k guesses, as in DINO."""
    metrics = {"top1": top_k_accuracy(top, places, 1)}
    if num_classes >= MIN_TOP5:
        metrics["top5"] = top_k_accuracy(top, places, min(5, k))
    return metrics


def rank_classes(
    queries: Float[Tensor, "queries width"],
    features: Float[Tensor, "train width"],
    places: Int64[Tensor, " train"],
    *,
    num_classes: int,
    counts: Sequence[int],
    temperature: float,
) -> Int64[Tensor, "queries counts guesses"]:
    """Return the (at most 5) classes with the largest votes of each query, for each number of neighbours.

    If two classes have the same votes, the lower one ranks first, so that classes without votes fill up the ranking by
    lowest number, as in DINO's sort.

    Args:
        queries: unit-length features to classify.
        features: unit-length features of the training images.
        places: class of each training image, from 0 to num_classes - 1.
        num_classes: number of classes.
        counts: numbers of neighbours that vote.
        temperature: divisor of the cosines in the exponent.
    """
    cosines, neighbours = nearest(queries, features, max(counts))
    of_neighbour = places[neighbours].cpu()  # [Q, k]
    ranked = [
        best_classes(vote(cosines[:, :count], of_neighbour[:, :count], num_classes, temperature), min(5, num_classes))
        for count in counts
    ]
    return torch.stack(ranked, dim=1).to(queries.device)


def nearest(
    queries: Float[Tensor, "queries width"], features: Float[Tensor, "train width"], k: int
) -> tuple[Float[Tensor, "queries k"], Int64[Tensor, "queries k"]]:
    """Return the k largest cosines of each query, largest first, and the rows of `features` that have them.

    The search is exact, and takes `features` block by block, so that it needs little memory.
    """
    cosines, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0).to(queries.device, torch.int64)
    for start in range(0, len(features), BLOCK):
        block = features[start : start + BLOCK]
        best, places = (queries @ block.T).topk(min(k, len(block)), dim=1)
        cosines, rows = torch.cat([cosines, best], dim=1), torch.cat([rows, places + start], dim=1)
        cosines, kept = cosines.topk(min(k, cosines.shape[1]), dim=1)
        rows = rows.gather(1, kept)
    return cosines, rows


def vote(
    cosines: Float[Tensor, "queries k"], places: Int64[Tensor, "queries k"], num_classes: int, temperature: float
) -> Float64[Tensor, "queries classes"]:
    """Return the votes of each class: the sum of exp((cosine - largest cosine) / temperature) over its neighbours.

    Cosines relative to the nearest neighbour rank the classes as cosines do, and never overflow.

    Args:
        cosines: cosines of the neighbours, largest first.
        places: classes of the neighbours, on the CPU.
        num_classes: number of classes.
        temperature: divisor of the cosines.
    """
    weights = ((cosines - cosines[:, :1]).cpu().double() / temperature).exp()  # [Q, k]
    votes = weights.new_zeros(len(cosines), num_classes)
    return votes.scatter_add_(1, places, weights)  # on the CPU, because a GPU adds in no fixed order
