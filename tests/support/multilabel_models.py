"""Pictures that show several classes; importable, because ranks evaluate them too."""

import numpy as np
import torch
from evaluation_models import CLASSNAMES, TEMPLATES, Pictures, bundle, dual_encoder
from jaxtyping import UInt8

from openslip.data.source import Source
from openslip.evaluation.multilabel import MultiLabel


class Labelled(Pictures):
    """Pictures with random label vectors and no labels."""

    def __init__(self, count: int) -> None:
        super().__init__(count, labels=[None] * count)
        self.vectors = (np.random.default_rng(count).random((count, len(CLASSNAMES))) < 0.4).astype(np.uint8)

    @property
    def label_vectors(self) -> UInt8[np.ndarray, "images classes"]:
        return self.vectors


def multilabel(source: Source) -> MultiLabel:
    return MultiLabel(
        title="several", source=source, classnames=CLASSNAMES, templates=TEMPLATES, batch_size=4, num_workers=0
    )


def multilabel_on_this_rank(count: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    torch.manual_seed(0)
    evaluation = multilabel(Labelled(count))
    return evaluation.run(bundle(dual_encoder())), evaluation.arrays
