"""Linear probe: logistic regression on frozen features. Radford et al. 2021, arXiv:2103.00020, section 3.2 and A.3.

After `run`, `LinearProbe.arrays` holds `labels` and `predictions`, int64 [N]: N test samples in the source's order; and
`classnames`, if the source names its classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.distributed import on_first_rank
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation, top1_line
from openslip.evaluation.frozen_features import (
    Classes,
    check_features,
    classes_of,
    frozen_features,
    known_places,
    predictions_of,
    refuse_other_classes,
    split_rows,
)
from openslip.evaluation.image_features import ImageFeatures
from openslip.evaluation.logistic import fit_logistic
from openslip.evaluation.metrics import accuracies, top_k_accuracy
from openslip.inference.bundle import Bundle, evaluating

DTYPES = {"float64": torch.float64, "float32": torch.float32}

# The sweep of CLIP, section A.3: 96 logarithmic steps from 1e-6 to 1e6, 8 per factor of 10, searched coarse to fine.
# There it is of lambda, whose inverse is C; the range is the same.
SWEEP = np.logspace(-6, 6, 97).tolist()
FIRST_PLACES = range(0, 97, 16)
STEPS = (8, 4, 2, 1)


class Images(NamedTuple):
    """Features of images, and their classes as places among the classes of the training images."""

    features: Float[Tensor, "images width"]
    places: Int64[Tensor, " images"]


class LinearProbe(Evaluation):
    """Accuracy of a logistic regression that is fitted on the features of labelled images, in per cent.

    With `c=sweep`, C is the value with the best accuracy on the validation images, as in CLIP: the best of seven values
    first, then of its neighbours at ever smaller distances. The final fit uses train and validation together. Metrics:
    `top1`, `top5` and `mean_of_top1_top5` (with at least 5 classes), `mean_per_class`, `chance` (100 / number of
    classes among the training images), `num_samples`; the note `C` is the value that the sweep chose.

    Args:
        title: name of the evaluation in its headline.
        train: labelled images to fit on.
        test: labelled images to classify.
        validation: labelled images for the sweep; or the share of `train` that is used for it, drawn with `seed`. None
            if there is no sweep.
        c: factor on the sum of cross entropies, scikit-learn's `C`; or `sweep`.
        seed: seed of the split of `train` into train and validation.
        features: `tower` for the image tower's features before any projection, as in the paper, or `joint`.
        normalise: whether features are scaled to unit length; CLIP's probe does not.
        precision: `float64`, or `float32`, which is faster on most GPUs; products are computed in it.
        decrease: the fit ends when ten iterations decrease its objective by no more than this share.
        max_iterations: largest number of iterations of L-BFGS (1000 in the paper).
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor refuses a value or the sources; `run` meets a sample without a label, or a label that
            no training image has.
    """

    def __init__(
        self,
        *,
        title: str,
        train: Source,
        test: Source,
        validation: Source | float | None,
        c: float | str,
        seed: int,
        features: str,
        normalise: bool,
        precision: str,
        decrease: float,
        max_iterations: int,
        batch_size: int,
        num_workers: int,
    ) -> None:
        if c != "sweep" and (isinstance(c, str) or c <= 0):
            raise UserError(f"c={c}: a linear probe expected a number above 0, or sweep")
        if c == "sweep" and validation is None:
            raise UserError("validation=null: c=sweep expected labelled images, or a share of train such as 0.1")
        if isinstance(validation, float | int) and not (0 < validation < 1 and len(train) > 1):
            raise UserError(f"validation={validation}: expected labelled images, or a share of train between 0 and 1")
        if precision not in DTYPES:
            raise UserError(f"precision={precision}: a linear probe expected float64 or float32")
        check_features("a linear probe", features)
        if len(train) == 0 or len(test) == 0:
            raise UserError(f"linear probe: the {'test' if len(train) else 'train'} source has no samples")
        refuse_other_classes("linear probe", train, test, "test")
        if isinstance(validation, Source):
            refuse_other_classes("linear probe", train, validation, "validation")
        self.title = title
        self.train = train
        self.test = test
        self.validation = validation
        self.c = c
        self.seed = seed
        self.features = features
        self.normalise = normalise
        self.precision = precision
        self.decrease = decrease
        self.max_iterations = max_iterations
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        return top1_line(self.title, metrics)

    def run(self, bundle: Bundle) -> dict[str, float]:
        train, test = self.encode(bundle, self.train), self.encode(bundle, self.test)
        classes = classes_of(train.labels)
        test_places = known_places("linear probe", classes, test.labels, "test")
        fitted, held_out = self.split(bundle, Images(train.features, classes.places), classes)
        with evaluating(bundle.model, bundle.device):
            c = self.best_c(fitted, held_out) if isinstance(self.c, str) else self.c
            both = fitted if held_out is None else Images(*map(torch.cat, zip(fitted, held_out, strict=True)))
            top = self.classify(both, test.features, c)
        predicted = classes.labels.cpu()[top[:, 0]].numpy()
        self.arrays = predictions_of(self.test, test.labels.cpu().numpy(), predicted)
        metrics = accuracies(top.numpy(), test_places.cpu().numpy(), len(classes.labels))
        return {**metrics, "chance": 100 / len(classes.labels), "num_samples": float(len(test.labels))}

    def split(self, bundle: Bundle, train: Images, classes: Classes) -> tuple[Images, Images | None]:
        """Return the images to fit on and, if there are any, those on which C is chosen."""
        if self.validation is None:
            return train, None
        if isinstance(self.validation, Source):
            features, labels = self.encode(bundle, self.validation)
            return train, Images(features, known_places("linear probe", classes, labels, "validation"))
        parts = (rows.to(bundle.device) for rows in split_rows(len(train.features), self.validation, self.seed))
        fitted, held_out = (Images(train.features[rows], train.places[rows]) for rows in parts)
        return fitted, held_out

    def best_c(self, fitted: Images, held_out: Images | None) -> float:
        """Choose C by a sweep, and note it."""
        assert held_out is not None  # the constructor refuses a sweep without validation images
        # A class may have no image among those that are fitted; it is then never predicted.
        occurring, of_row = fitted.places.unique(return_inverse=True)
        truth = held_out.places.cpu().numpy()

        def accuracy(c: float) -> float:
            top = self.classify(Images(fitted.features, of_row), held_out.features, c)
            return top_k_accuracy(occurring.cpu()[top].numpy(), truth, 1)

        c, best = sweep(accuracy)
        self.notes = {"C": f"{c:.3g}, with {best:.2f} % on the validation images"}
        return c

    def classify(self, known: Images, queries: Tensor, c: float) -> Int64[Tensor, "queries guesses"]:
        """Fit on rank 0, and return on every rank the (at most 5) best classes of each query, on the CPU."""
        rows = known.features.to(DTYPES[self.precision])

        def top_classes() -> Tensor:
            fit = fit_logistic(rows, known.places, c, decrease=self.decrease, max_iterations=self.max_iterations)
            return fit.best(queries, min(5, len(fit.coef))).cpu()

        return on_first_rank(top_classes)

    def encode(self, bundle: Bundle, source: Source) -> ImageFeatures:
        return frozen_features(
            bundle,
            source,
            features=self.features,
            normalise=self.normalise,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )


def sweep(accuracy: Callable[[float], float]) -> tuple[float, float]:
    """Search for the value of C with the best accuracy, and return C and that accuracy.

    If several of the compared values are equally good, the smallest of them is returned.

    Args:
        accuracy: accuracy on the validation images after a fit with the given C; called once for each value.
    """
    known: dict[int, float] = {}

    def best(places: Sequence[int]) -> int:
        for place in places:
            if place not in known:
                known[place] = accuracy(SWEEP[place])
        return max(places, key=known.__getitem__)  # the first of equals

    peak = best(FIRST_PLACES)
    for step in STEPS:
        peak = best([max(peak - step, 0), peak, min(peak + step, len(SWEEP) - 1)])
    return SWEEP[peak], known[peak]
