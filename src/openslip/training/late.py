"""Figures of a step, read after the next one: whoever reads a tensor at once makes the device wait for the host."""

import torch
import torch.distributed as dist
from torch import Tensor

from openslip.distributed import world_size


class LateFigures:
    """Scalars on their way from the device; their mean over ranks, made in one reduction."""

    def __init__(self, figures: dict[str, Tensor]) -> None:
        self.names = list(figures)
        values = torch.stack([x.double() if x.device.type != "mps" else x.float() for x in figures.values()])
        if world_size() > 1:
            dist.all_reduce(values)
            values /= world_size()
        self.on_gpu = values.device.type == "cuda"
        self.values = values
        if self.on_gpu:
            self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.values.copy_(values, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> dict[str, float]:
        """The figures, as soon as the device has them."""
        if self.on_gpu:
            self.copied.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))
