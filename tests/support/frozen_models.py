"""Small evaluations of frozen features, and features computed by a loop; importable, because ranks run them too."""

from typing import Any

import numpy as np
import torch
from evaluation_models import CLASSNAMES, TEMPLATES, Pictures, bundle, dual_encoder, knn, transform
from torch import nn

from openslip.data.image.decode import open_image
from openslip.data.source import Source
from openslip.distributed import on_first_rank, rank
from openslip.errors import UserError
from openslip.evaluation.evaluation import Evaluation
from openslip.evaluation.few_shot import FewShot
from openslip.evaluation.frozen_classifiers import LogisticRegression, NearestNeighbours
from openslip.evaluation.novelty import Energy, LocalOutlierFactor, MaxSimilarity
from openslip.evaluation.open_set import OpenSet
from openslip.evaluation.probe import LinearProbe
from openslip.evaluation.verification import Verification

LOADING: dict[str, Any] = {"batch_size": 4, "num_workers": 0}
SOLVER: dict[str, Any] = {"decrease": 1e-12, "max_iterations": 5000}


def named(count: int, seed: int, labels: list[int]) -> Pictures:
    """Pictures whose source names its classes; the labels are repeated in turn."""
    source = Pictures(count, seed=seed, labels=[labels[index % len(labels)] for index in range(count)])
    source.classes = CLASSNAMES
    return source


def probe(train: Source, test: Source, **options: Any) -> LinearProbe:
    settings: dict[str, Any] = {
        "title": "probe",
        "validation": None,
        "c": 0.5,
        "seed": 0,
        "features": "tower",
        "normalise": False,
        "precision": "float64",
    }
    return LinearProbe(train=train, test=test, **(settings | SOLVER | LOADING | options))


def few_shot(train: Source, test: Source, **options: Any) -> FewShot:
    settings: dict[str, Any] = {
        "title": "few-shot",
        "shots": [1, 3],
        "seeds": [0, 1, 2],
        "c": 0.5,
        "features": "tower",
        "normalise": False,
    }
    return FewShot(train=train, test=test, **(settings | SOLVER | LOADING | options))


def open_set(train: Source, seen: Source, unseen: Source, **options: Any) -> OpenSet:
    settings: dict[str, Any] = {
        "title": "open set",
        "classifier": NearestNeighbours(k=5, temperature=0.07),
        "novelty": {
            "max_similarity": MaxSimilarity(),
            "energy": Energy(),
            "local_outlier_factor": LocalOutlierFactor(neighbours=4),
        },
        "held_out": 0.25,
        "accepted": 0.8,
        "seed": 0,
        "classnames": None,
        "templates": TEMPLATES,
        "features": "tower",
        "normalise": False,
    }
    return OpenSet(train=train, seen=seen, unseen=unseen, **(settings | LOADING | options))


def verification(source: Source, **options: Any) -> Verification:
    settings: dict[str, Any] = {
        "title": "verification",
        "num_pairs": 10_000,
        "ways": 3,
        "num_episodes": 30,
        "seed": 0,
        "features": "tower",
    }
    return Verification(source=source, **(settings | LOADING | options))


def sets() -> tuple[Pictures, Pictures, Pictures]:
    """Training pictures of five classes, other pictures of these, and pictures of the other two classes."""
    return named(41, 1, [0, 1, 2, 3, 4]), named(23, 2, [4, 3, 1, 0, 2, 1]), named(17, 3, [5, 6, 5])


def evaluation(name: str) -> Evaluation:
    train, seen, unseen = sets()
    several_k = knn(train, seen, k=[5, 1, 20])
    return {
        "knn": several_k,
        "probe": probe(train, seen, c="sweep", validation=0.3, decrease=1e-4, max_iterations=100),
        "few_shot": few_shot(train, seen),
        "open_set": open_set(train, seen, unseen),
        "open_set_by_probe": open_set(
            train, seen, unseen, classifier=LogisticRegression(c=0.5, decrease=1e-12, max_iterations=1000)
        ),
        "verification": verification(seen),
    }[name]


def run_frozen_on_this_rank(name: str) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, str]]:
    made = evaluation(name)
    figures = made.run(bundle(dual_encoder()))
    return figures, made.arrays, made.notes


def tower_features(model: nn.Module, source: Source) -> np.ndarray:
    """Features of the image tower by a loop over pictures, in float64."""
    model = model.double().eval()
    rows = []
    for index in range(len(source)):
        image = transform()(open_image(source[index].image, "")).double()
        with torch.no_grad():
            rows.append(model.image_tower(image[None])[0].numpy())  # pyright: ignore
    return np.stack(rows)


def labels(source: Source) -> np.ndarray:
    return np.array([source[index].label for index in range(len(source))])


def fail_on_the_first_rank() -> str:
    """What this rank says of an error that only rank 0 meets."""

    def compute() -> None:
        raise UserError(f"rank {rank()} cannot")

    try:
        on_first_rank(compute)
    except UserError as error:
        return str(error)
    return ""
