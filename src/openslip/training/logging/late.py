"""Figures of a step, read after the next one: whoever reads a tensor at once makes the device wait for the host."""

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from openslip.distributed import world_size


class Late:
    """Values on their way from the device, as they are now."""

    def __init__(self, values: Shaped[Tensor, "*shape"]) -> None:
        self.on_gpu = values.device.type == "cuda"
        self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=self.on_gpu)
        self.values.copy_(values, non_blocking=True)
        if self.on_gpu:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> Shaped[Tensor, "*shape"]:
        """The values on the host, as soon as the device has given them."""
        if self.on_gpu:
            self.copied.synchronize()
        return self.values


class LateFigures:
    """Scalars by name; their mean over ranks, made in one reduction."""

    def __init__(self, figures: dict[str, Tensor]) -> None:
        self.names = list(figures)
        values = torch.stack([x.double() if x.device.type != "mps" else x.float() for x in figures.values()])
        if world_size() > 1:
            dist.all_reduce(values)
            values /= world_size()
        self.values = Late(values)

    def read(self) -> dict[str, float]:
        """The figures, as soon as the device has them."""
        return dict(zip(self.names, self.values.read().tolist(), strict=True))
