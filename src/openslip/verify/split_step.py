"""One training step of a split, in float64, as an iterator over every quantity that the split could change."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from openslip.distributed import all_sum, world_size
from openslip.objectives import tiles
from openslip.objectives.objective import Objective
from openslip.optim import param_groups
from openslip.training.microbatch import loss_in_slices

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class StepParts:
    """The parts of a step, as `Pretrainer` takes them; a step changes none of them."""

    model: nn.Module
    objective: Objective
    optimizer: Callable[[list[dict]], torch.optim.Optimizer]
    weight_decay: float
    layer_decay: float | None


class Quantity(NamedTuple):
    """An array in the memory of a step, to be used before the next one is asked for."""

    kind: str
    name: str
    array: np.ndarray


class Float64Copy(nn.Module):
    """Model and objective in training mode, and the forward pass that DDP wraps."""

    def __init__(self, parts: StepParts) -> None:
        super().__init__()
        self.model, self.objective = copy.deepcopy((parts.model, parts.objective))  # at once: they may share modules
        self.double().train()

    def forward(self, batch: Batch, sizes: Sequence[int]) -> dict[str, Tensor]:
        return loss_in_slices(self.objective, self.model, batch, sizes)


def quantities(parts: StepParts, batch: Batch, sizes: Sequence[int], tile: int | None) -> Iterator[Quantity]:
    """Loss terms and gradients as means over ranks, then statistics and weights after the optimizer's step.

    Args:
        parts: of the step.
        batch: of this rank, in float64.
        sizes: samples of each micro-batch.
        tile: rows and columns of the losses' tiles; None: their plain form.
    """
    copied = Float64Copy(parts)
    forward = copied
    if dist.is_initialized():  # options as in configs/trainer/ddp.yaml
        forward = DistributedDataParallel(copied, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = parts.optimizer(param_groups([copied.model, copied.objective], parts.weight_decay, parts.layer_decay))
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    with in_tiles(tile):
        terms = forward(batch, sizes)
        terms["loss"].backward()
    for name, term in terms.items():
        yield Quantity("loss terms", name, (all_sum(term.detach()) / world_size()).numpy())
    for name, parameter in copied.named_parameters():
        if parameter.grad is not None:
            yield Quantity("gradients", name, parameter.grad.numpy())
    optimizer.step()
    copied.objective.after_step(copied.model)
    for name, buffer in copied.named_buffers():
        if buffer.is_floating_point():
            yield Quantity("statistics", name, buffer.numpy())
    for name, parameter in copied.named_parameters():
        yield Quantity("weights", name, parameter.detach().numpy())


@contextmanager
def in_tiles(size: int | None) -> Iterator[None]:
    """Whatever the batch, losses are made in tiles of this many rows and columns; None: in their plain form."""
    before = tiles.PLAIN_UP_TO, tiles.CPU_TILE
    tiles.PLAIN_UP_TO, tiles.CPU_TILE = (1 << 62, 0) if size is None else (0, size)
    try:
        yield
    finally:
        tiles.PLAIN_UP_TO, tiles.CPU_TILE = before
