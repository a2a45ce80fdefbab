"""Zero-shot classification by attributes, with classifiers of attributes that are fitted on frozen features.

Nearest code: Palatucci et al. 2009, "Zero-shot learning with semantic output codes", NeurIPS. Direct attribute
prediction (DAP): Lampert, Nickisch and Harmeling 2009, "Learning to detect unseen object classes by between-class
attribute transfer", CVPR. After `run`, `SemanticCodes.arrays` holds the following arrays. N
is the number of images of unseen classes, C of all classes, A of attributes.

| name | dtype, shape | content |
|---|---|---|
| `classnames` | str [C] | all classes in label order |
| `labels` | int64 [N] | true class |
| `predictions` | int64 [N] | class by the nearest code |
| `predictions_dap` | int64 [N] | class by DAP |
| `attribute_names` | str [A] | names of the attributes |
| `attribute_values` | str [A, C] | every class's value of each attribute |
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float64, Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.distributed import on_first_rank
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.frozen_features import check_features, frozen_features
from openslip.evaluation.image_features import ImageFeatures
from openslip.evaluation.logistic import fit_logistic
from openslip.evaluation.metrics import best_classes, per_cent
from openslip.inference.bundle import Bundle, evaluating


class SemanticCodes(Evaluation):
    """Accuracy among classes without any training image, of which only the attributes are known, in per cent.

    A class's code has one bit per value of each attribute. Metrics: `top1_nearest_code`, where the bits are predicted
    by ridge regression and the class with the nearest code is chosen; `top1_dap`, where each bit has a logistic
    regression and the class with the highest product of posteriors, divided by the bits' priors, is chosen; `chance`
    (100 / number of unseen classes), `num_unseen_classes`, `num_samples`.

    Args:
        title: name of the evaluation in its headline.
        train: labelled images of seen classes, on which the attributes are learnt.
        unseen: labelled images of other classes, with labels of the same numbering.
        attributes: by name of the attribute, its value for every class, in label order.
        ridge: factor on the sum of squared weights of the ridge regression, scikit-learn's `alpha`.
        c: factor on the sum of cross entropies of the logistic regressions, scikit-learn's `C`.
        tolerance: scikit-learn's `tol`.
        max_iterations: largest number of iterations of L-BFGS.
        features: `tower` for the image tower's features before any projection, or `joint`.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor refuses a value; `run` meets a sample without a label or a label without attributes,
            a class in both sources, a value of an attribute that all or no training images have, or two unseen classes
            with the same code.
    """

    headline_metric = "top1_nearest_code"

    def __init__(
        self,
        *,
        title: str,
        train: Source,
        unseen: Source,
        attributes: dict[str, list[str]],
        ridge: float,
        c: float,
        tolerance: float,
        max_iterations: int,
        features: str,
        batch_size: int,
        num_workers: int,
    ) -> None:
        for key, value in (("ridge", ridge), ("c", c)):
            if value <= 0:
                raise UserError(f"{key}={value}: semantic codes expected a number above 0")
        if len({len(values) for values in attributes.values()}) != 1:
            raise UserError("attributes: semantic codes expected one or more, with one value per class each")
        for role, source in (("train", train), ("unseen", unseen)):
            if len(source) == 0:
                raise UserError(f"semantic codes: {role} has no samples")
        check_features("semantic codes", features)
        self.title = title
        self.train = train
        self.unseen = unseen
        self.attributes = attributes
        self.ridge = ridge
        self.c = c
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.features = features
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.bits = [(name, value) for name, values in attributes.items() for value in dict.fromkeys(values)]
        # [classes, bits]
        self.codes = np.array([np.array(attributes[name]) == value for name, value in self.bits], np.float64).T

    def headline(self, metrics: dict[str, float]) -> str:
        return (
            f"{self.title}: nearest code {metrics['top1_nearest_code']:.1f} %, DAP {metrics['top1_dap']:.1f} % "
            f"(chance {metrics['chance']:.1f} %)"
        )

    def run(self, bundle: Bundle) -> dict[str, float]:
        train, unseen = (
            frozen_features(
                bundle,
                source,
                features=self.features,
                normalise=False,
                batch_size=self.batch_size,
                num_workers=self.num_workers,
            )
            for source in (self.train, self.unseen)
        )
        seen_classes, classes = (of.labels.cpu().unique().numpy() for of in (train, unseen))
        self.check(seen_classes, classes)

        def classify() -> tuple[np.ndarray, np.ndarray]:
            predicted = self.predict_codes(train, unseen)
            codes = torch.from_numpy(self.codes[classes]).to(predicted)
            by_code = best_classes(-torch.cdist(predicted, codes), 1)[:, 0]
            by_posterior = best_classes(self.dap_scores(train, unseen, seen_classes, classes), 1)[:, 0]
            return by_code.cpu().numpy(), by_posterior.cpu().numpy()

        with evaluating(bundle.model, bundle.device):
            predictions, predictions_dap = (classes[places] for places in on_first_rank(classify))
        labels = unseen.labels.cpu().numpy()
        names = self.train.classes or [str(label) for label in range(len(self.codes))]
        self.arrays = {
            "classnames": np.array(list(names)),
            "labels": labels,
            "predictions": predictions,
            "predictions_dap": predictions_dap,
            "attribute_names": np.array(list(self.attributes)),
            "attribute_values": np.array(list(self.attributes.values())),
        }
        return {
            "top1_nearest_code": per_cent(predictions == labels),
            "top1_dap": per_cent(predictions_dap == labels),
            "chance": 100 / len(classes),
            "num_unseen_classes": float(len(classes)),
            "num_samples": float(len(labels)),
        }

    def check(self, seen: Int64[np.ndarray, " seen"], unseen: Int64[np.ndarray, " unseen"]) -> None:
        """Refuse labels and attributes with which no result would mean anything."""
        if (highest := max(seen.max(), unseen.max())) >= len(self.codes):
            raise UserError(f"semantic codes: label {highest} has no attributes; they are of {len(self.codes)} classes")
        if len(both := np.intersect1d(seen, unseen)):
            raise UserError(
                f"semantic codes: unseen has images of class {both[0]}, and so has train: expected other classes"
            )
        shares = self.codes[seen].mean(axis=0)
        if len(constant := np.flatnonzero((shares == 0) | (shares == 1))):
            name, value = self.bits[constant[0]]
            raise UserError(
                f"semantic codes: all or no training images have {name} {value!r}, so it cannot be learnt: give images "
                "of classes with and without it, or leave the attribute out"
            )
        if len(np.unique(self.codes[unseen], axis=0)) < len(unseen):
            raise UserError("semantic codes: two unseen classes have the same attributes: give one that differs")

    def predict_codes(self, train: ImageFeatures, images: ImageFeatures) -> Float64[Tensor, "images bits"]:
        """Return the bits that the ridge regression predicts, with an intercept that is not penalised."""
        codes = torch.from_numpy(self.codes).to(train.features.device)[train.labels]
        features, centre = train.features.double(), train.features.mean(dim=0, dtype=torch.float64)
        of_features, of_codes = features - centre, codes - codes.mean(dim=0)
        gram = of_features.T @ of_features
        gram.diagonal().add_(self.ridge)
        weights = torch.linalg.solve(gram, of_features.T @ of_codes)
        return (images.features.double() - centre) @ weights + codes.mean(dim=0)

    def dap_scores(
        self,
        train: ImageFeatures,
        images: ImageFeatures,
        seen: Int64[np.ndarray, " seen"],
        unseen: Int64[np.ndarray, " unseen"],
    ) -> Float64[Tensor, "images unseen"]:
        """Return the logarithm of the product over bits of posterior / prior, for each unseen class.

        A bit's prior is its mean over the seen classes.
        """
        scores = images.features.new_zeros(len(images.features), len(unseen), dtype=torch.float64)
        for place, prior in enumerate(self.codes[seen].mean(axis=0).tolist()):
            codes = torch.from_numpy(self.codes[:, place]).to(train.features.device)
            fit = fit_logistic(
                train.features.double(),
                codes[train.labels].long(),
                self.c,
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
            )
            absent, present = F.log_softmax(fit.scores(images.features), dim=1).T  # [images] each
            is_present = codes[torch.from_numpy(unseen).to(codes.device)] == 1
            ratio = torch.stack([absent - np.log1p(-prior), present - np.log(prior)])
            scores += ratio[is_present.long()].T
        return scores
