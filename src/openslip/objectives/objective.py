"""Contract: an objective mixes samples only in `loss`, so every split of the global batch gives the same update."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from openslip.models.batch_norm import synchronise
from openslip.schedules import PiecewiseLinear

HALF = (torch.float16, torch.bfloat16)


class Objective(nn.Module, ABC):
    """A training method. It owns its heads, queues and teachers; the model holds only what inference needs.

    The argument `model` of all methods is the configured model (`DualEncoder`, `ImageEncoder` or your own class).

    Attributes:
        min_batch_size: smallest number of samples in a global batch that gives a gradient; 2 if the samples are each
            other's negatives.
        skipped: whether this step's update is skipped, as a bool scalar on the device; set before `after_step` is
            called. It is true if the loss is not finite; if there is no loss scaler, also if a gradient is not finite.
            It is false if the fp16 loss scaler skips an update because gradients overflow. After a skipped step, only
            buffers of up to 2**18 elements are restored. If `skipped` is true, `after_step` must therefore change
            neither larger buffers (queues) nor parameters (EMA teachers).
        schedules: attributes whose values are functions of the step, such as the weight of a term; a dotted name is an
            attribute of a submodule. A config gives them as schedules in place of numbers; the framework assigns the
            numbers of each step before `encode` is called.
    """

    min_batch_size = 1
    skipped: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("skipped", torch.zeros((), dtype=torch.bool), persistent=False)
        self.schedules: dict[str, PiecewiseLinear] = {}

    @abstractmethod
    def encode(self, model: Any, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        """Return the features of each sample of a micro-batch; this method must not mix samples."""

    @abstractmethod
    def loss(self, model: Any, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        """Return named scalars for the features of the whole local batch; `"loss"` is the total loss.

        Everything that mixes samples happens here: gathers over ranks, heads with batch norm, queues. The mean of
        `"loss"` over ranks is the loss of the global batch. Autocast is off, and 16-bit features have been cast to
        float32.
        """

    def setup(self, model: Any, /) -> None:
        """Create modules that depend on the model (heads, teachers); called once, before the optimizer is created."""

    def prepare(self, model: Any, /) -> None:
        """Call `setup`, then `synchronise` the batch norms of heads over the global batch; called by the framework."""
        self.setup(model)
        synchronise(self, runs_again=False)

    def begin_step(self, step: int, max_steps: int) -> dict[str, float]:
        """Assign the numbers of a step to the attributes in `schedules`, and return them; called by the framework."""
        numbers = {name: schedule(step, max_steps) for name, schedule in self.schedules.items()}
        for name, number in numbers.items():
            module, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(module), attribute, number)
        return numbers

    def rank_buffers(self) -> dict[str, Tensor]:
        """Return the buffers whose values differ between ranks; a checkpoint keeps those of every rank."""
        return {}

    def after_step(self, model: Any, /) -> None:
        """Clamp parameters, update EMA teachers and queues; called after every step, even if the update was skipped."""

    def terms(self, model: Any, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        """Call `loss` at full precision: autocast is off, and 16-bit features are cast to float32 first."""
        device = next(iter(features.values())).device
        with torch.autocast(device.type, enabled=False):
            return self.loss(model, {key: x.float() if x.dtype in HALF else x for key, x in features.items()})
