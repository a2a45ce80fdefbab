"""Small evaluations with attributes, and their truths by loops; importable, because ranks run them too."""

from typing import Any

import numpy as np
from evaluation_models import Pictures, bundle, dual_encoder
from frozen_models import named

from openslip.data.source import Source
from openslip.evaluation.image_map import ImageMap
from openslip.evaluation.semantic_codes import SemanticCodes

# Of the seven classes of `Pictures`; the last two are the unseen ones.
VALUES = {
    "colour": ["red", "green", "blue", "red", "green", "blue", "red"],
    "shape": ["cross", "ring", "cross", "ring", "cross", "ring", "cross"],
    "size": ["small", "small", "big", "big", "small", "small", "big"],
}


def semantic_codes(train: Source, unseen: Source, **options: Any) -> SemanticCodes:
    settings: dict[str, Any] = {
        "title": "codes",
        "attributes": VALUES,
        "ridge": 0.7,
        "c": 0.5,
        "tolerance": 1e-9,
        "max_iterations": 5000,
        "features": "tower",
        "batch_size": 4,
        "num_workers": 0,
    }
    return SemanticCodes(train=train, unseen=unseen, **settings | options)


def image_map(source: Source, **options: Any) -> ImageMap:
    settings: dict[str, Any] = {
        "title": "map",
        "attributes": {name: values for name, values in VALUES.items() if name != "size"},
        "features": "joint",
        "batch_size": 4,
        "num_workers": 0,
    }
    return ImageMap(source=source, **settings | options)


def sources() -> tuple[Pictures, Pictures]:
    """Training pictures of five classes, and pictures of the other two."""
    return named(45, 1, [0, 1, 2, 3, 4]), named(21, 3, [5, 6, 5])


def codes_and_map_on_this_rank() -> list[tuple[dict[str, float], dict[str, np.ndarray]]]:
    found = []
    for evaluation in (semantic_codes(*sources()), image_map(named(19, 2, [0, 1, 2, 3, 4, 5, 6]))):
        found.append((evaluation.run(bundle(dual_encoder())), evaluation.arrays))
    return found
