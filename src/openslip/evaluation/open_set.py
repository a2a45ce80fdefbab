"""Open-set recognition: images of seen classes are classified by their features, images of new ones by text.

Socher et al. 2013, arXiv:1301.3666: a novelty score decides whether an image shows a seen class. The accuracies are
those of generalised zero-shot learning: Xian et al. 2017, arXiv:1707.00600, section 4.3, equations 13 and 14. After
`run`, `OpenSet.arrays` holds, for N images (those of seen classes first, each source in its order):

| name | dtype, shape | content |
|---|---|---|
| `classnames` | str [C] | seen classes, then unseen classes |
| `labels` | int64 [N] | true class |
| `is_unseen` | bool [N] | whether the image is of a class that no training image has |
| `predictions` | int64 [N] | predicted class, routed by the first novelty score |
| `novelty_SCORE` | float64 [N] | novelty of each image |
| `threshold_SCORE` | float64 [] | novelty above which an image is classified by text |
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from openslip.data.source import Source
from openslip.distributed import on_first_rank
from openslip.errors import UserError
from openslip.evaluation.class_names import class_names
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.features import text_features
from openslip.evaluation.frozen_classifiers import FrozenClassifier
from openslip.evaluation.frozen_features import check_features, classes_of, frozen_features, split_rows
from openslip.evaluation.image_features import ImageFeatures, joint_features
from openslip.evaluation.metrics import best_classes, mean_per_class_recall, per_cent, roc_auc
from openslip.evaluation.novelty import Novelty
from openslip.inference.bundle import Bundle, evaluating
from openslip.inference.prompts import class_embeddings, repeated, texts_of

Scores = dict[str, np.ndarray]  # novelty by score, float64 [N]


class OpenSet(Evaluation):
    """Recognition of seen and of new classes, in per cent.

    An image whose novelty is above a threshold is classified by text among the unseen classes, any other by the
    classifier among the seen ones. The threshold accepts a given share of training images that were held out. Metrics:

    - `mean_per_class_seen`, `mean_per_class_unseen`: accuracy if it were known which images are of unseen classes: the
      mean over classes of the share of right images;
    - for each novelty score S: `roc_auc_S`, the share of pairs of an unseen-class and a seen-class image in which the
      unseen one has the larger novelty; `fpr95_S`, the share of unseen-class images that are accepted by the threshold
      that accepts 95 % of the seen-class images; `mean_per_class_seen_S` and `mean_per_class_unseen_S`, the accuracies
      with routing; `harmonic_mean_S` of these two;
    - `chance`: each of the accuracies with routing, and their harmonic mean, if a class is drawn from all of them;
    - `num_seen_classes`, `num_unseen_classes`, `num_samples`.

    Args:
        title: name of the evaluation in its headline.
        train: labelled images of the seen classes.
        seen: labelled images of these classes to classify.
        unseen: labelled images of other classes to classify.
        classifier: method of classification among the seen classes.
        novelty: novelty scores by name; the first one is that of the headline.
        held_out: share of `train` that is not fitted but decides the threshold.
        accepted: share of the held-out images that the threshold accepts as seen.
        seed: seed of the draw of these images.
        classnames: as in `ZeroShot`, for each of the three sources; None for the sources' own names. Classes are the
            same if their names are.
        templates: as in `ZeroShot`.
        features: features for classifier and novelty: `tower` for those before any projection, or `joint`.
        normalise: whether these features are scaled to unit length.
        batch_size: images per forward pass.
        num_workers: processes that decode images; 0 decodes in this process.

    Raises:
        UserError: the constructor refuses a value; `run` meets a sample without a label, an image of `seen` whose class
            no training image has, or one of `unseen` whose class some have; or the model has no text tower.
    """

    def __init__(
        self,
        *,
        title: str,
        train: Source,
        seen: Source,
        unseen: Source,
        classifier: FrozenClassifier,
        novelty: dict[str, Novelty],
        held_out: float,
        accepted: float,
        seed: int,
        classnames: Iterable[Any] | str | Path | None,
        templates: Iterable[Any] | str | Path,
        features: str,
        normalise: bool,
        batch_size: int,
        num_workers: int,
    ) -> None:
        if not novelty:
            raise UserError("novelty: open-set recognition expected at least one novelty score")
        for key, share in (("held_out", held_out), ("accepted", accepted)):
            if not 0 < share < 1:
                raise UserError(f"{key}={share}: open-set recognition expected a share between 0 and 1")
        check_features("open-set recognition", features)
        for name, source, fewest in (("train", train, 2), ("seen", seen, 1), ("unseen", unseen, 1)):
            if len(source) < fewest:
                raise UserError(f"open-set recognition: {name} has {len(source)} samples: expected at least {fewest}")
        self.title = title
        self.train = train
        self.seen = seen
        self.unseen = unseen
        given = classnames if classnames is None or isinstance(classnames, str | Path) else list(classnames)
        self.names = {
            role: class_names(given, source.classes, labels_are_sorted_names=source.labels_are_sorted_names).names
            for role, source in (("train", train), ("seen", seen), ("unseen", unseen))
        }
        for role, names in self.names.items():
            if twice := repeated(names):
                raise UserError(
                    f"open-set recognition: {twice[0]!r} names several classes of {role}, and names tell classes "
                    "apart: give each class a name of its own with classnames=FILE"
                )
        self.classifier = classifier
        self.novelty = novelty
        self.held_out = held_out
        self.accepted = accepted
        self.seed = seed
        self.templates = texts_of(templates, "templates")
        self.features = features
        self.normalise = normalise
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.headline_metric = f"harmonic_mean_{next(iter(novelty))}"

    def headline(self, metrics: dict[str, float]) -> str:
        score = next(iter(self.novelty))
        return (
            f"{self.title} ({score}): harmonic mean {metrics[f'harmonic_mean_{score}']:.1f} %, of seen classes "
            f"{metrics[f'mean_per_class_seen_{score}']:.1f} %, of unseen ones "
            f"{metrics[f'mean_per_class_unseen_{score}']:.1f} % (chance {metrics['chance']:.1f} %); "
            f"AUROC {metrics[f'roc_auc_{score}']:.1f} %"
        )

    def run(self, bundle: Bundle) -> dict[str, float]:
        bundle.need_tokenizer()
        train, seen, unseen = (self.encode(bundle, source) for source in (self.train, self.seen, self.unseen))
        classes = classes_of(train.labels)
        seen_names = self.names_of("train", classes.labels.tolist())
        unseen_names, unseen_labels = self.unseen_classes(seen_names, unseen)
        labels = np.concatenate([self.seen_labels(seen_names, seen), unseen_labels])
        is_unseen = np.arange(len(labels)) >= len(seen.labels)
        by_text = len(seen_names) + self.classify_by_text(bundle, unseen_names)
        with evaluating(bundle.model, bundle.device):
            by_features, novelty, of_held_out = self.classify_by_features(
                train.features, classes.places, torch.cat([seen.features, unseen.features])
            )
        metrics = accuracies(np.where(is_unseen, by_text, by_features), labels, is_unseen, "")
        self.arrays = {"classnames": np.array(seen_names + unseen_names), "labels": labels, "is_unseen": is_unseen}
        for name, values in novelty.items():
            threshold = np.quantile(of_held_out[name], self.accepted, method="inverted_cdf")
            predictions = np.where(values > threshold, by_text, by_features)
            metrics |= separation(values, is_unseen, f"_{name}")
            metrics |= with_harmonic_mean(accuracies(predictions, labels, is_unseen, f"_{name}"), f"_{name}")
            self.arrays |= {f"novelty_{name}": values, f"threshold_{name}": threshold}
            self.arrays.setdefault("predictions", predictions)
        return {
            **metrics,
            "chance": 100 / (len(seen_names) + len(unseen_names)),
            "num_seen_classes": float(len(seen_names)),
            "num_unseen_classes": float(len(unseen_names)),
            "num_samples": float(len(labels)),
        }

    def classify_by_text(self, bundle: Bundle, names: list[str]) -> Int64[np.ndarray, " images"]:
        """Return the most similar of the named classes of each image, first those of `seen`, then those of `unseen`."""
        text = class_embeddings(lambda texts: text_features(bundle, texts), names, self.templates)
        predictions = []
        for source in (self.seen, self.unseen):
            images, _ = joint_features(bundle, source, batch_size=self.batch_size, num_workers=self.num_workers)
            with evaluating(bundle.model, bundle.device):
                predictions += [best_classes(rows @ text.T, 1)[:, 0] for rows in images.split(self.batch_size)]
        return torch.cat(predictions).cpu().numpy()

    def classify_by_features(
        self,
        train: Float[Tensor, "train width"],
        places: Int64[Tensor, " train"],
        images: Float[Tensor, "images width"],
    ) -> tuple[Int64[np.ndarray, " images"], Scores, Scores]:
        """Return the seen class of each image, and by score the novelty of each image and of each held-out image.

        Args:
            train: features of the training images.
            places: classes of the training images, from 0.
            images: features of other images.
        """
        fitted, held_out = (rows.to(train.device) for rows in split_rows(len(train), self.held_out, self.seed))
        # A class may have no image among those that are fitted; it is then never predicted.
        occurring, of_row = places[fitted].unique(return_inverse=True)
        known, queries = train[fitted], torch.cat([images, train[held_out]])

        def classify() -> tuple[np.ndarray, Scores]:
            scores = self.classifier.fit(known, of_row, len(occurring))(queries)
            novelty = {name: score(known, queries, scores).numpy() for name, score in self.novelty.items()}
            return occurring.cpu()[best_classes(scores, 1)[:, 0].cpu()].numpy(), novelty

        classes, novelty = on_first_rank(classify)
        count = len(images)
        of_images = {name: values[:count] for name, values in novelty.items()}
        return classes[:count], of_images, {name: values[count:] for name, values in novelty.items()}

    def encode(self, bundle: Bundle, source: Source) -> ImageFeatures:
        return frozen_features(
            bundle,
            source,
            features=self.features,
            normalise=self.normalise,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )

    def names_of(self, role: str, labels: list[int]) -> list[str]:
        """Return the class names of labels of the source `train`, `seen` or `unseen`."""
        names = self.names[role]
        if (highest := max(labels)) >= len(names):
            raise UserError(
                f"{role} has label {highest}, outside the {len(names)} class names (0 to {len(names) - 1}): give "
                "classnames as many names as the source has classes"
            )
        return [names[label] for label in labels]

    def seen_labels(self, seen_names: list[str], seen: ImageFeatures) -> Int64[np.ndarray, " images"]:
        """Return the class of each image of `seen`; refuse a class that no training image has."""
        places = {name: place for place, name in enumerate(seen_names)}
        names = self.names_of("seen", seen.labels.tolist())
        if missing := [name for name in names if name not in places]:
            raise UserError(
                f"open-set recognition: seen has images of {missing[0]!r}, and train has none: expected its classes"
            )
        return np.array([places[name] for name in names])

    def unseen_classes(
        self, seen_names: list[str], unseen: ImageFeatures
    ) -> tuple[list[str], Int64[np.ndarray, " images"]]:
        """Return the names of the unseen classes and the class of each image, numbered after the seen classes."""
        labels, places = unseen.labels.cpu().unique(return_inverse=True)
        names = self.names_of("unseen", labels.tolist())
        if known := set(names) & set(seen_names):
            raise UserError(
                f"open-set recognition: unseen has images of {min(known)!r}, and so has train: expected other classes"
            )
        return names, len(seen_names) + places.numpy()


def accuracies(
    predictions: Int64[np.ndarray, " images"],
    labels: Int64[np.ndarray, " images"],
    is_unseen: Bool[np.ndarray, " images"],
    suffix: str,
) -> dict[str, float]:
    """Return the mean over classes of the share of right images, of the seen and of the unseen classes."""
    return {
        f"mean_per_class_{name}{suffix}": mean_per_class_recall(labels[rows], predictions[rows], int(labels.max()) + 1)
        for name, rows in (("seen", ~is_unseen), ("unseen", is_unseen))
    }


def with_harmonic_mean(metrics: dict[str, float], suffix: str) -> dict[str, float]:
    """Add the harmonic mean of the two accuracies; 0 if both are."""
    seen, unseen = metrics.values()
    return {**metrics, f"harmonic_mean{suffix}": 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0}


def separation(
    novelty: Float64[np.ndarray, " images"], is_unseen: Bool[np.ndarray, " images"], suffix: str
) -> dict[str, float]:
    """Return `roc_auc` and `fpr95` of a novelty score, as in Hendrycks and Gimpel 2017 and Liu et al. 2020.

    arXiv:1610.02136 and arXiv:2010.03759; images of seen classes are the positives of `fpr95`. An image whose novelty
    equals a threshold is accepted.
    """
    threshold = np.quantile(novelty[~is_unseen], 0.95, method="inverted_cdf")
    return {
        f"roc_auc{suffix}": roc_auc(novelty, is_unseen),
        f"fpr95{suffix}": per_cent(novelty[is_unseen] <= threshold),
    }
