"""Label view: the number of each sample's class."""

from typing import Any

import numpy as np
import torch

from openslip.data.view import Columns, DecodedSample, View


class Label(View):
    """View that makes NAME [B], the class index of each sample, or -1 for a sample without a label."""

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        return {"": np.int64(-1 if sample.label is None else sample.label)}

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        """Draw one of three labels or none, so that some samples are equal."""
        return {"": torch.randint(-1, 3, (size,), generator=generator)}
