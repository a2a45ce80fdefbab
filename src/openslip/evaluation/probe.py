"""Linear probe: logistic regression on frozen features. Radford et al. 2021, arXiv:2103.00020, section 3.2 and A.3.

After `run`, `LinearProbe.arrays` holds `labels` and `predictions`, int64 [N]: N test samples in the source's order.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
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
    refuse_other_classes,
    split_rows,
)
from openslip.evaluation.image_features import ImageFeatures
from openslip.evaluation.logistic import fit_logistic
from openslip.evaluation.metrics import accuracies, top_k_accuracy
from openslip.inference.bundle import Bundle, evaluating

DTYPES = {"float64": torch.float64, "float32": torch.float32}

# The sweep of clip_benchmark (metrics/linear_probe.py), which follows that of CLIP: 12 values of C per factor of 10.
SWEEP = np.logspace(-6, 2, 97).tolist()
FIRST_PLACES = range(0, 97, 16)
STEPS = (8, 4, 2, 1)


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
        tolerance: scikit-learn's `tol`.
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
        tolerance: float,
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
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.batch_size = batch_size
        self.num_workers = num_workers

    def headline(self, metrics: dict[str, float]) -> str:
        return top1_line(self.title, metrics)

    def run(self, bundle: Bundle) -> dict[str, float]:
        train, test = self.encode(bundle, self.train), self.encode(bundle, self.test)
        classes = classes_of(train.labels)
        test_places = known_places("linear probe", classes, test.labels, "test")
        with evaluating(bundle.model, bundle.device):
            rows, places, c = self.choose(bundle, train, classes)
            top = self.classify(rows, places, test.features, c)
        self.arrays = {"labels": test.labels.cpu().numpy(), "predictions": classes.labels.cpu()[top[:, 0]].numpy()}
        metrics = accuracies(top.numpy(), test_places.cpu().numpy(), len(classes.labels))
        return {**metrics, "chance": 100 / len(classes.labels), "num_samples": float(len(test.labels))}

    def choose(self, bundle: Bundle, train: ImageFeatures, classes: Classes) -> tuple[Tensor, Tensor, float]:
        """Return the features and classes of the final fit, and its C."""
        rows, places = train.features, classes.places
        if isinstance(self.validation, Source):
            held_out = self.encode(bundle, self.validation)
            fitted, held_rows = (rows, places), held_out.features
            held_places = known_places("linear probe", classes, held_out.labels, "validation")
            rows, places = torch.cat([rows, held_rows]), torch.cat([places, held_places])
        elif self.validation is not None:
            first, second = (part.to(rows.device) for part in split_rows(len(rows), self.validation, self.seed))
            fitted, held_rows, held_places = (rows[first], places[first]), rows[second], places[second]
        if not isinstance(self.c, str):
            return rows, places, self.c

        def accuracy(c: float) -> float:
            # A class may have no image among those that are fitted; it is then never predicted.
            occurring, of_row = fitted[1].unique(return_inverse=True)
            top = occurring.cpu()[self.classify(fitted[0], of_row, held_rows, c)]
            return top_k_accuracy(top.numpy(), held_places.cpu().numpy(), 1)

        c, best = sweep(accuracy)
        self.notes = {"C": f"{c:.3g}, with {best:.2f} % on the validation images"}
        return rows, places, c

    def classify(self, rows: Tensor, places: Tensor, queries: Tensor, c: float) -> Tensor:
        """Fit on rank 0, and return on every rank the 5 best classes of each query, on the CPU."""
        dtype = DTYPES[self.precision]

        def top_classes() -> Tensor:
            fit = fit_logistic(rows.to(dtype), places, c, tolerance=self.tolerance, max_iterations=self.max_iterations)
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
    """Search the value of C with the best accuracy, and return both; of equally good values, the smallest compared.

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
