"""Writes a folder of metrics as `openslip verify` reads it, computed by scikit-learn and by plain loops."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import metrics as sklearn
from sklearn.linear_model import LogisticRegression

Arrays = dict[str, np.ndarray]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    classes: int
    samples: int
    probe_classes: int
    cs: tuple[float, ...]
    neighbours: tuple[tuple[int, float], ...]
    captions: dict[str, tuple[int, int]]  # by name: fewest and most captions of an image
    places: tuple[int, ...]
    images: int = 23
    width: int = 9


def write_metrics(folder: Path, sizes: Sizes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    metrics, classification = classification_figures(sizes, rng)
    probe_metrics, probe = probe_figures(sizes, rng)
    retrieval_metrics, retrieval = retrieval_figures(sizes, rng)
    files = {"classification.npz": classification, "probe.npz": probe, "retrieval.npz": retrieval}
    for name, arrays in files.items():
        np.savez(folder / name, allow_pickle=False, **arrays)
    shapes = {name: {key: [[*x.shape], str(x.dtype)] for key, x in arrays.items()} for name, arrays in files.items()}
    (folder / "arrays.json").write_text(json.dumps(shapes))
    content = {"settings": {}, "seed": seed, "metrics": metrics | probe_metrics | retrieval_metrics}
    (folder / "metrics.json").write_text(json.dumps(content))


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def in_first(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of rows whose label is among the k highest scores; of equal ones, the first counts."""
    hits = 0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        hits += label in sorted(range(len(row)), key=lambda place, row=row: (-row[place], place))[:k]
    return hits / len(labels)


def uneven(classes: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Labels of which each class has some, and some classes many."""
    drawn = rng.choice(classes, samples - classes, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return rng.permutation(np.concatenate([np.arange(classes), drawn]))


def classification_figures(sizes: Sizes, rng: np.random.Generator) -> tuple[Figures, Arrays]:
    classes, samples, width = sizes.classes, sizes.samples, sizes.width
    targets = uneven(classes, samples, rng)
    truth = np.eye(classes)[targets]
    logits = (rng.normal(size=(samples, classes)) + truth).astype(np.float32)
    predictions, exact = logits.argmax(axis=1), logits.astype(np.float64)
    softmax = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    top1, top5 = sklearn.accuracy_score(targets, predictions), in_first(logits, targets, 5)
    mean_recall = sklearn.balanced_accuracy_score(targets, predictions)
    figures: Figures = {
        "top1": top1,
        "mean_per_class_recall": mean_recall,
        "slip_top1_percent": 100 * top1,
        "slip_mean_per_class_percent": 100 * mean_recall,
        "roc_auc_ovr_macro_softmax": sklearn.roc_auc_score(targets, softmax, multi_class="ovr"),
        "roc_auc_ovo_macro_softmax": sklearn.roc_auc_score(targets, softmax, multi_class="ovo"),
    }
    if classes >= 5:
        figures |= {"top5": top5, "slip_mean_of_top1_top5_percent": float(np.float32(50 * (top1 + top5)))}
    confusion = sklearn.confusion_matrix(targets, predictions)

    binary_targets = (np.arange(61) % 3 == 0).astype(np.int64)
    binary_logits = (rng.integers(-4, 5, (61, 2)) + 2 * np.eye(2)[binary_targets]).astype(np.float32) / 4
    margins = binary_logits[:, 1] - binary_logits[:, 0]
    binary = {
        "slip_roc_auc_percent": 100 * sklearn.roc_auc_score(binary_targets, margins),
        "roc_auc_if_scored_by_logit_1_alone": sklearn.roc_auc_score(binary_targets, binary_logits[:, 1]),
        "distinct_scores": len(np.unique(margins)),
        "top1": sklearn.accuracy_score(binary_targets, binary_logits.argmax(axis=1)),
    }

    shown = (rng.random((57, classes)) < 0.3).astype(np.int64)
    scores = (rng.normal(size=shown.shape) + shown).astype(np.float32)
    precisions = [sklearn.average_precision_score(*columns) for columns in zip(shown.T, scores.T, strict=True)]
    mean = float(np.mean(precisions))

    texts = rng.normal(size=(classes, 3, width)).astype(np.float32) * rng.uniform(1, 4, (classes, 3, 1))
    images = rng.normal(size=(samples, width)) + 0.7 * unit(texts).mean(axis=1)[targets] * 5
    texts, images = texts.astype(np.float32), images.astype(np.float32)
    classifier = unit(unit(texts.astype(np.float64)).mean(axis=1)).T
    cosines = 100 * unit(images.astype(np.float64)) @ classifier
    accuracy = {"acc1": in_first(cosines, targets, 1), "acc5": in_first(cosines, targets, 5)}
    prompts = {key: share for key, share in accuracy.items() if classes >= 5 or key == "acc1"}
    prompts["mean_per_class_recall"] = sklearn.balanced_accuracy_score(targets, cosines.argmax(axis=1))

    sections = {
        "classification": figures,
        "binary": binary,
        "multilabel": {"mean_average_precision": mean, "sklearn_macro": mean},
        "prompts": prompts,
    }
    arrays = {
        "logits": logits,
        "targets": targets,
        "confusion": confusion,
        "recall_per_class": confusion.diagonal() / confusion.sum(axis=1),
        "binary_logits": binary_logits,
        "binary_targets": binary_targets,
        "multilabel_scores": scores,
        "multilabel_targets": shown,
        "multilabel_ap": np.array(precisions, np.float32),
        "prompt_text_features": texts,
        "prompt_image_features": images,
        "prompt_classifier": classifier.astype(np.float32),
        "prompt_logits": cosines.astype(np.float32),
    }
    return sections, arrays


def probe_figures(sizes: Sizes, rng: np.random.Generator) -> tuple[Figures, Arrays]:
    classes = sizes.probe_classes
    centres = rng.normal(size=(classes, sizes.width))
    targets = {"train": uneven(classes, 90, rng), "test": uneven(classes, 41, rng)}
    features = {
        part: (centres[labels] + 0.9 * rng.normal(size=(len(labels), sizes.width))).astype(np.float32)
        for part, labels in targets.items()
    }
    arrays = {
        f"{part}_{kind}": x[part] for part in targets for kind, x in (("features", features), ("targets", targets))
    }
    probes: Figures = {}
    for kind in ("raw", "normalized"):
        exact = {part: x.astype(np.float64) for part, x in features.items()}
        exact = {part: unit(x) for part, x in exact.items()} if kind == "normalized" else exact
        for c in sizes.cs:
            name = f"{kind}/C{c}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # rounding may end the search before the tolerance is reached
                model = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(exact["train"], targets["train"])
            shares = {part: model.score(exact[part], targets[part]) for part in targets}
            losses = -model.predict_log_proba(exact["train"])[np.arange(len(targets["train"])), targets["train"]]
            objective = c * losses.sum() + np.square(model.coef_).sum() / 2
            probes[name] = {"accuracy": shares["test"], "train_accuracy": shares["train"], "objective": objective}
            probes[name]["iterations"] = int(model.n_iter_[0])
            arrays |= {f"{name}/coef": model.coef_, f"{name}/intercept": model.intercept_}
            arrays[f"{name}/test_probabilities"] = model.predict_proba(exact["test"])
    neighbours: Figures = {}
    cosines = unit(features["test"].astype(np.float64)) @ unit(features["train"].astype(np.float64)).T
    for k, temperature in sizes.neighbours:
        votes = np.zeros((len(cosines), classes))
        for query, row in enumerate(cosines):
            for place in np.argsort(-row)[:k]:
                votes[query, targets["train"][place]] += np.exp(row[place] / temperature)
        name = f"k{k}_T{temperature}"
        top1, top5 = in_first(votes, targets["test"], 1), in_first(votes, targets["test"], min(5, k))
        neighbours[name] = {"k": k, "temperature": temperature, "top1": top1, "top5": top5}
        arrays[f"knn/{name}/votes"] = votes
    return {"linear_probe": probes, "knn": neighbours}, arrays


def retrieval_figures(sizes: Sizes, rng: np.random.Generator) -> tuple[Figures, Arrays]:
    sections: Figures = {}
    arrays: Arrays = {}
    for name, (fewest, most) in sizes.captions.items():
        counts = rng.integers(fewest, most + 1, sizes.images)
        of_text = np.repeat(np.arange(sizes.images), counts)
        images = rng.normal(size=(sizes.images, sizes.width)).astype(np.float32)
        texts = (images[of_text] + 1.2 * rng.normal(size=(len(of_text), sizes.width))).astype(np.float32)
        scores = unit(texts.astype(np.float64)) @ unit(images.astype(np.float64)).T
        recalls: Figures = {}
        for place in sizes.places:
            found = [image in np.argsort(-row)[:place] for row, image in zip(scores, of_text, strict=True)]
            recalls[f"image_retrieval_recall@{place}"] = float(np.float32(np.mean(found)))
            found = [(of_text[np.argsort(-column)[:place]] == image).any() for image, column in enumerate(scores.T)]
            recalls[f"text_retrieval_recall@{place}"] = float(np.float32(np.mean(found)))
        sections[f"retrieval_{name}"] = recalls
        arrays |= {f"{name}/image_features": images, f"{name}/text_features": texts, f"{name}/image_of_text": of_text}
        arrays[f"{name}/scores_text_by_image"] = scores.astype(np.float32)
    return sections, arrays
