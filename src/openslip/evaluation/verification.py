"""Verification and one-shot recognition by similarity of frozen features. Koch, Zemel and Salakhutdinov 2015.

"Siamese neural networks for one-shot image recognition", ICML deep learning workshop, sections 1 and 4.3: do two images
show the same class, and which of N images, one per class, shows the class of another one? Both are answered by the
cosine similarity of features, or by a siamese network's own distance. After `run`, `Verification.arrays` holds
`similarities`, float64 [P], and `is_same`, bool [P], of P pairs, and `is_right`, bool [E], of E episodes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.distributed import on_first_rank
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.frozen_features import check_features, frozen_features
from openslip.evaluation.metrics import per_cent, roc_auc
from openslip.inference.bundle import Bundle, evaluating
from openslip.models.siamese import Siamese

PAIR_NUMBERS = 2**23  # numbers in the features that are compared at a time


class Verification(Evaluation):
    """Recognition of classes that only one image shows, in per cent.

    Metrics: `roc_auc`, the share of combinations of a same-class pair and a different-class pair of images in which the
    same-class pair is more similar; `top1_N_way`, the share of episodes in which, of N images of N classes, the one of
    the same class is most similar to the query; `chance` (of `top1_N_way`), `num_pairs`, `num_episodes`, `num_samples`.

    Args:
        title: name of the evaluation in its headline.
        source: labelled images; classes that the model has not seen in training make it one-shot recognition.
        num_pairs: largest number of pairs. If the images have no more pairs than this, all are used; otherwise this
            many are drawn, one half of them from pairs of the same class.
        ways: number of classes N of an episode (20 in the paper).
        num_episodes: number of episodes that are drawn (400 in the paper).
        seed: seed of both draws.
        features: `tower` for the image tower's features before any projection, or `joint`.
        similarity: `cosine` of the features; or `model`, the logit that two images are of the same class, which a
            siamese network (`openslip.models.siamese`) computes of its `joint` features.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor refuses a value; `run` meets a sample without a label, fewer classes than ways, or no
            class with two images.
    """

    def __init__(
        self,
        *,
        title: str,
        source: Source,
        num_pairs: int,
        ways: int,
        num_episodes: int,
        seed: int,
        features: str,
        batch_size: int,
        num_workers: int,
        similarity: str = "cosine",
    ) -> None:
        for key, value, fewest in (("num_pairs", num_pairs, 2), ("ways", ways, 2), ("num_episodes", num_episodes, 1)):
            if value < fewest:
                raise UserError(f"{key}={value}: verification expected at least {fewest}")
        check_features("verification", features)
        if similarity not in ("cosine", "model"):
            raise UserError(f"similarity={similarity}: verification expected cosine or model")
        if similarity == "model" and features != "joint":
            raise UserError(f"features={features}: similarity=model compares joint features: set features=joint")
        if len(source) < 2:
            raise UserError(f"verification: the source has {len(source)} samples: expected at least 2 to compare")
        self.title = title
        self.source = source
        self.num_pairs = num_pairs
        self.ways = ways
        self.num_episodes = num_episodes
        self.seed = seed
        self.features = features
        self.similarity = similarity
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.headline_metric = f"top1_{ways}_way"

    def headline(self, metrics: dict[str, float]) -> str:
        return (
            f"{self.title}: {self.ways}-way one-shot {metrics[f'top1_{self.ways}_way']:.1f} % "
            f"(chance {metrics['chance']:.1f} %), AUROC of pairs {metrics['roc_auc']:.1f} %"
        )

    def run(self, bundle: Bundle) -> dict[str, float]:
        if self.similarity == "model" and not isinstance(bundle.model, Siamese):
            raise UserError(
                f"similarity=model: {bundle.name()} is a {type(bundle.model).__name__}, which compares no images "
                "itself: expected a siamese network (model=siamese_tiny), or set similarity=cosine"
            )
        features, of_image = frozen_features(
            bundle,
            self.source,
            features=self.features,
            normalise=self.similarity == "cosine",
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )
        labels = of_image.cpu().numpy()
        classes, counts = np.unique(labels, return_counts=True)
        if len(classes) < self.ways:
            raise UserError(f"ways={self.ways}: verification expected 2 to {len(classes)}, the number of classes")
        if counts.max() < 2:
            raise UserError("verification: no class has two images, so that no pair shows the same class")
        pairs = draw_pairs(labels, self.num_pairs, np.random.default_rng((self.seed, 0)))
        episodes = draw_episodes(labels, self.ways, self.num_episodes, np.random.default_rng((self.seed, 1)))

        similarity = cosines if self.similarity == "cosine" else bundle.model.same_logits_of_pairs

        def compare() -> tuple[np.ndarray, np.ndarray]:
            queries, candidates = np.repeat(episodes.queries, self.ways), episodes.candidates.ravel()
            of_episodes = similarities(features, queries, candidates, similarity)
            of_pairs = similarities(features, pairs[:, 0], pairs[:, 1], similarity)
            return of_pairs, of_episodes.reshape(-1, self.ways)

        with evaluating(bundle.model, bundle.device):
            of_pairs, of_candidates = on_first_rank(compare)
        is_same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        is_right = of_candidates.argmax(axis=1) == episodes.answers
        self.arrays = {"similarities": of_pairs, "is_same": is_same, "is_right": is_right}
        return {
            "roc_auc": roc_auc(of_pairs, is_same),
            f"top1_{self.ways}_way": per_cent(is_right),
            "chance": 100 / self.ways,
            "num_pairs": float(len(pairs)),
            "num_episodes": float(self.num_episodes),
            "num_samples": float(len(labels)),
        }


def similarities(
    features: Float[Tensor, "images width"],
    first: Int64[np.ndarray, " pairs"],
    second: Int64[np.ndarray, " pairs"],
    similarity: Callable[[Tensor, Tensor], Tensor],
) -> Float64[np.ndarray, " pairs"]:
    """Return the similarity of each pair of rows of `features`.

    Args:
        features: one row per image.
        first: row of each pair's first image.
        second: row of its second image.
        similarity: function of the features of both images of some pairs, a row for each.
    """
    of_pairs, at_a_time = [], max(1, PAIR_NUMBERS // features.shape[1])
    for start in range(0, len(first), at_a_time):
        one, other = (features[rows[start : start + at_a_time]].double() for rows in (first, second))
        of_pairs.append(similarity(one, other).double().cpu())
    return torch.cat(of_pairs).numpy()


def cosines(one: Float64[Tensor, "pairs width"], other: Float64[Tensor, "pairs width"]) -> Float64[Tensor, " pairs"]:
    """Return the cosine of each pair of features of unit length."""
    return (one * other).sum(dim=1)


def draw_pairs(
    labels: Int64[np.ndarray, " images"], most: int, rng: np.random.Generator
) -> Int64[np.ndarray, "pairs 2"]:
    """Return all pairs of images, or, if there are more than `most`, as many random ones.

    One half of the random pairs is drawn uniformly from all pairs of the same class, the other half from all pairs of
    different classes; a pair may occur twice.

    Args:
        labels: class of each image.
        most: largest number of pairs.
        rng: source of the random numbers.
    """
    num_images = len(labels)
    if num_images * (num_images - 1) // 2 <= most:
        return np.stack(np.triu_indices(num_images, k=1), axis=1)
    num_same_class = most // 2
    of_class = Members.of(labels)
    others = of_class.counts[of_class.places] - 1  # number of other images of the same class, for each image
    # The first image is drawn in proportion to its number of same-class pairs, its partner uniformly among those.
    first = rng.choice(num_images, size=num_same_class, p=others / others.sum())
    pairs = [np.stack([first, of_class.another(first, rng)], axis=1)]
    missing = most - num_same_class
    while missing:
        drawn = rng.integers(num_images, size=(missing, 2))
        drawn = drawn[labels[drawn[:, 0]] != labels[drawn[:, 1]]]
        pairs.append(drawn)
        missing -= len(drawn)
    return np.concatenate(pairs)


class Episodes(NamedTuple):
    """Images of one-shot episodes, as indices: of N candidates, `answers` is the one that shows the query's class."""

    queries: Int64[np.ndarray, " episodes"]
    candidates: Int64[np.ndarray, "episodes ways"]
    answers: Int64[np.ndarray, " episodes"]


def draw_episodes(labels: Int64[np.ndarray, " images"], ways: int, count: int, rng: np.random.Generator) -> Episodes:
    """Draw episodes: `ways` different classes, one image of each, and another image of one of these classes.

    Args:
        labels: class of each image; at least `ways` classes, one of which has two images.
        ways: number of classes of an episode.
        count: number of episodes.
        rng: source of the random numbers.
    """
    of_class = Members.of(labels)
    num_classes = len(of_class.counts)
    with_two = np.flatnonzero(of_class.counts > 1)
    targets = rng.choice(with_two, size=count)
    # Other classes in a random order, and the target at a random place among the first of them.
    keys = rng.random((count, num_classes))
    keys[np.arange(count), targets] = np.inf
    classes = np.concatenate([keys.argsort(axis=1)[:, : ways - 1], targets[:, None]], axis=1)
    answers = rng.integers(ways, size=count)
    classes[:, -1] = classes[np.arange(count), answers]
    classes[np.arange(count), answers] = targets
    candidates = of_class.draw(classes, rng)
    return Episodes(of_class.another(candidates[np.arange(count), answers], rng), candidates, answers)


class Members(NamedTuple):
    """The images of each class: those of class c are `order[starts[c] : starts[c] + counts[c]]`."""

    order: Int64[np.ndarray, " images"]
    starts: Int64[np.ndarray, " classes"]
    counts: Int64[np.ndarray, " classes"]
    places: Int64[np.ndarray, " images"]  # class of each image

    @classmethod
    def of(cls, labels: Int64[np.ndarray, " images"]) -> "Members":
        _, places, counts = np.unique(labels, return_inverse=True, return_counts=True)
        return cls(places.argsort(kind="stable"), counts.cumsum() - counts, counts, places)

    def draw(self, classes: Int64[np.ndarray, "*shape"], rng: np.random.Generator) -> Int64[np.ndarray, "*shape"]:
        """Draw an image of each class."""
        return self.order[self.starts[classes] + rng.integers(self.counts[classes])]

    def another(self, images: Int64[np.ndarray, " n"], rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
        """Draw for each image another one of its class, which has at least two."""
        place_of = self.order.argsort()  # place of each image in `order`
        starts, counts = self.starts[self.places[images]], self.counts[self.places[images]]
        inside = place_of[images] - starts
        return self.order[starts + (inside + 1 + rng.integers(counts - 1)) % counts]
