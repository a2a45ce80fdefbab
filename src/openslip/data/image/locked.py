"""Image view for a locked image tower: the tower's feature of each image, computed once for the whole dataset."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openslip.data.view import Columns, DecodedSample, View


class LockedImage(View):
    """View NAME [B, width]: what a locked image tower returns for each image, as the evaluation transform shows it.

    The callback `LockedImages` computes the features before the first step. An epoch then costs no pass of the tower.

    Args:
        width: width of the tower's pooled feature.

    Attributes:
        features: features of all samples, in the order of the dataset.
    """

    needs_image = False
    features: Float[Tensor, "samples width"] | None = None

    def __init__(self, *, width: int) -> None:
        self.width = width

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        assert self.features is not None  # set by the callback
        return {"": self.features[sample.place].numpy()}

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        return {"": torch.randn(size, self.width, generator=generator)}
