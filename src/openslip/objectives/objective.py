"""Contract: an objective in two halves, so that any split of the global batch gives the same update."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Objective(nn.Module, ABC):
    """A training method. It owns its heads, queues and teachers; the model holds only what inference needs.

    `model` is the configured model (`DualEncoder`, `ImageEncoder` or your own).
    """

    @abstractmethod
    def encode(self, model: Any, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        """Per-sample features of any slice of the batch: nothing here may mix samples."""

    @abstractmethod
    def loss(self, model: Any, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        """Named scalars with `"loss"` the total, from the features of the whole local batch.

        All that mixes samples happens here: gathers over ranks, heads with batch norm, queues. The mean over ranks of
        `"loss"` is the loss of the global batch.
        """

    def setup(self, model: Any, /) -> None:
        """Called once, before the optimizer is made: heads take their width from the model, teachers copy it."""

    def after_step(self, model: Any, /) -> None:
        """Called after every optimizer step: clamps, EMA teachers."""
