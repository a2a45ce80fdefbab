"""Contract: an objective in two halves, so that any split of the global batch makes the same update."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from openslip.models.batch_norm import synchronise

HALF = (torch.float16, torch.bfloat16)


class Objective(nn.Module, ABC):
    """A training method. It owns its heads, queues and teachers; the model holds only what inference needs.

    `model` is the configured model (`DualEncoder`, `ImageEncoder` or your own).

    Attributes:
        min_batch_size: smallest global batch to learn from; 2 where samples are each other's negatives.
        skipped: whether this step's update is skipped, a bool on the device that is set before `after_step`; small
            buffers are restored then, and a buffer of more than 2**18 elements, such as a queue, must be left as it is.
    """

    min_batch_size = 1
    skipped: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("skipped", torch.zeros((), dtype=torch.bool), persistent=False)

    @abstractmethod
    def encode(self, model: Any, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        """Per-sample features of any part of the batch: nothing here may mix samples."""

    @abstractmethod
    def loss(self, model: Any, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        """Named scalars with `"loss"` the total, from the features of the whole local batch.

        All that mixes samples happens here: gathers over ranks, heads with batch norm, queues. The mean over ranks of
        `"loss"` is the loss of the global batch. Autocast is off, and 16-bit features have been cast to float32.
        """

    def setup(self, model: Any, /) -> None:
        """Called once, before the optimizer is made: heads take their width from the model, teachers copy it."""

    def prepare(self, model: Any, /) -> None:
        """`setup`, called as the framework calls it: batch norms of heads become those of the global batch."""
        self.setup(model)
        synchronise(self, runs_again=False)

    def after_step(self, model: Any, /) -> None:
        """Called after every optimizer step: clamps, EMA teachers, queues."""

    def terms(self, model: Any, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        """What `loss` returns, called as the framework calls it, whatever the precision of the run."""
        device = next(iter(features.values())).device
        with torch.autocast(device.type, enabled=False):
            return self.loss(model, {key: x.float() if x.dtype in HALF else x for key, x in features.items()})
