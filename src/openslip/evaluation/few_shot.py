"""Few-shot classification: a logistic regression on the frozen features of k images per class.

Radford et al. 2021, arXiv:2103.00020, section 3.1.4 (figure 6); the k images are the first of each class in a seeded
permutation, as in clip_benchmark. After `run`, `FewShot.arrays` holds `shots`, int64 [K], and `accuracies`,
float64 [K, S], in per cent: of K numbers of images per class, for each of S seeds.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.distributed import on_first_rank
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.frozen_features import (
    check_features,
    class_name,
    classes_of,
    frozen_features,
    known_places,
    refuse_other_classes,
)
from openslip.evaluation.logistic import fit_logistic
from openslip.evaluation.metrics import top_k_accuracy
from openslip.inference.bundle import Bundle, evaluating


class FewShot(Evaluation):
    """Accuracy of a logistic regression that is fitted on few images per class, in per cent.

    The classes are always all classes of the training images, and the images of more shots include those of fewer
    (with the same seed). Metrics: `top1_K_shot` for each number K of images per class, the mean over seeds,
    `top1_K_shot_std`, the standard deviation over seeds (of a sample: divided by seeds - 1; with at least 2 seeds),
    `chance` (100 / number of classes), `num_samples`.

    Args:
        title: name of the evaluation in its headline.
        train: labelled images from which the images to fit on are drawn.
        test: labelled images to classify.
        shots: numbers of images per class.
        seeds: seeds of the draws.
        c: factor on the sum of cross entropies, scikit-learn's `C`.
        features: `tower` for the image tower's features before any projection, or `joint`.
        normalise: whether features are scaled to unit length.
        decrease: the fit ends when ten iterations decrease its objective by no more than this share.
        max_iterations: largest number of iterations of L-BFGS.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor refuses a value or the sources; `run` meets a sample without a label, a class with
            fewer training images than shots, or a label that no training image has.
    """

    def __init__(
        self,
        *,
        title: str,
        train: Source,
        test: Source,
        shots: Sequence[int],
        seeds: Sequence[int],
        c: float,
        features: str,
        normalise: bool,
        decrease: float,
        max_iterations: int,
        batch_size: int,
        num_workers: int,
    ) -> None:
        if not shots or min(shots) < 1 or len(set(shots)) < len(shots):
            raise UserError(f"shots={shots}: few-shot expected different numbers of images per class, such as [1, 4]")
        if not seeds or len(set(seeds)) < len(seeds):
            raise UserError(f"seeds={seeds}: few-shot expected different numbers, such as [0, 1, 2]")
        if c <= 0:
            raise UserError(f"c={c}: few-shot expected a number above 0")
        check_features("few-shot", features)
        if len(test) == 0:
            raise UserError("few-shot: the test source has no samples")
        refuse_other_classes("few-shot", train, test, "test")
        self.title = title
        self.train = train
        self.test = test
        self.shots = list(shots)
        self.headline_metric = f"top1_{max(self.shots)}_shot"
        self.seeds = list(seeds)
        self.c = c
        self.features = features
        self.normalise = normalise
        self.decrease = decrease
        self.max_iterations = max_iterations
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        shares = (f"{count}: {metrics[f'top1_{count}_shot']:.1f} %" for count in self.shots)
        return f"{self.title}, by images per class {', '.join(shares)} (chance {metrics['chance']:.1f} %)"

    def run(self, bundle: Bundle) -> dict[str, float]:
        train, test = (
            frozen_features(
                bundle,
                source,
                features=self.features,
                normalise=self.normalise,
                batch_size=self.batch_size,
                num_workers=self.num_workers,
            )
            for source in (self.train, self.test)
        )
        classes = classes_of(train.labels)
        test_places = known_places("few-shot", classes, test.labels, "test").cpu().numpy()
        counts = classes.places.bincount()
        if int(counts.min()) < max(self.shots):
            name = class_name(self.train, int(classes.labels[counts.argmin()]))
            raise UserError(
                f"few-shot: {name} has {int(counts.min())} training images, and shots={self.shots} needs "
                f"{max(self.shots)} of every class: give more images, or fewer shots"
            )
        queries = test.features.double()

        def accuracy(count: int, seed: int) -> float:
            rows = first_of_each_class(classes.places.cpu(), count, seed).to(bundle.device)
            fit = fit_logistic(
                train.features[rows].double(),
                classes.places[rows],
                self.c,
                decrease=self.decrease,
                max_iterations=self.max_iterations,
            )
            return top_k_accuracy(fit.best(queries, 1).cpu().numpy(), test_places, 1)

        with evaluating(bundle.model, bundle.device):
            by_shots = on_first_rank(lambda: [[accuracy(count, seed) for seed in self.seeds] for count in self.shots])
        self.arrays = {"shots": np.array(self.shots), "accuracies": np.array(by_shots)}
        metrics: dict[str, float] = {}
        for count, of_seeds in zip(self.shots, by_shots, strict=True):
            metrics[f"top1_{count}_shot"] = float(np.mean(of_seeds))
            if len(of_seeds) > 1:
                metrics[f"top1_{count}_shot_std"] = float(np.std(of_seeds, ddof=1))
        return {**metrics, "chance": 100 / len(classes.labels), "num_samples": float(len(test_places))}


def first_of_each_class(places: Int64[Tensor, " train"], count: int, seed: int) -> Int64[Tensor, " rows"]:
    """Draw `count` images of each class, the first ones of the class in a seeded permutation of all images.

    The rows are ordered by class, and those of a class as in the permutation.

    Args:
        places: class of each training image.
        count: images per class.
        seed: seed of the permutation.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(places)))
    by_class = order[places[order].argsort(stable=True)]  # classes one after the other, each in the permuted order
    counts = places.bincount()
    rank_in_class = torch.arange(len(places)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return by_class[rank_in_class < count]
