"""Contract: an objective mixes samples only in `loss`, so every split of the global batch gives the same update."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from openslip.models.batch_norm import synchronise

HALF = (torch.float16, torch.bfloat16)


class Objective(nn.Module, ABC):
    """A training method. It owns its heads, queues and teachers; the model holds only what inference needs.

    The argument `model` of all methods is the configured model (`DualEncoder`, `ImageEncoder` or your own).

    Attributes:
        min_batch_size: smallest global batch, in samples, that gives a gradient; 2 where samples are each other's
            negatives.
        skipped: bool scalar on the device, set before `after_step`: whether this step's update is skipped. After a
            skipped step small buffers are restored. A buffer of more than 2**18 elements, such as a queue, is not
            restored, so `after_step` must not change it where `skipped` is true.
    """

    min_batch_size = 1
    skipped: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("skipped", torch.zeros((), dtype=torch.bool), persistent=False)

    @abstractmethod
    def encode(self, model: Any, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        """Return per-sample features of a micro-batch; nothing here may mix samples."""

    @abstractmethod
    def loss(self, model: Any, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        """Return named scalars, of which `"loss"` is the total, from the features of the whole local batch.

        Everything that mixes samples happens here: gathers over ranks, heads with batch norm, queues. The mean over
        ranks of `"loss"` is the loss of the global batch. Autocast is off, and 16-bit features have been cast to
        float32.
        """

    def setup(self, model: Any, /) -> None:
        """Create what depends on the model (heads, teachers); called once, before the optimizer is created."""

    def prepare(self, model: Any, /) -> None:
        """Call `setup`, then make the batch norms of heads use global-batch statistics; called by the framework."""
        self.setup(model)
        synchronise(self, runs_again=False)

    def after_step(self, model: Any, /) -> None:
        """Clamp parameters, update EMA teachers and queues; called after every step, a skipped one included."""

    def terms(self, model: Any, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        """Call `loss` with autocast off and 16-bit features cast to float32, whatever the precision of the run."""
        device = next(iter(features.values())).device
        with torch.autocast(device.type, enabled=False):
            return self.loss(model, {key: x.float() if x.dtype in HALF else x for key, x in features.items()})
