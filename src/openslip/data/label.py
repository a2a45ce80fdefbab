"""Label view: the class of a sample, for objectives that compare images of the same class and of different classes."""

from typing import Any

import numpy as np

from openslip.data.view import DecodedSample, View
from openslip.errors import UserError


class Label(View):
    """View that makes NAME [B], int64, the dataset's class index of each sample.

    Raises:
        UserError: `draw` meets a sample without a label.
    """

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        if sample.label is None:
            raise UserError(
                f"{sample.key} has no label, which this objective compares: use a data.source whose samples have one "
                "(KEY.cls in tar shards, e.g. data=builtin)"
            )
        return {"": np.int64(sample.label)}
