"""Reads the metrics of a step after the next step; reading them at once would synchronise with the device."""

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from openslip.distributed import world_size


class Late:
    """Copies the current values from the device to the host asynchronously."""

    def __init__(self, values: Shaped[Tensor, "*shape"]) -> None:
        self.on_gpu = values.device.type == "cuda"
        self.values = torch.empty(values.shape, dtype=values.dtype, pin_memory=self.on_gpu)
        self.values.copy_(values, non_blocking=True)
        if self.on_gpu:
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> Shaped[Tensor, "*shape"]:
        """Return the values on the host, after waiting until they are copied."""
        if self.on_gpu:
            self.copied.synchronize()
        return self.values


class LateMetrics:
    """Averages named scalars over ranks in one reduction, and copies the means to the host asynchronously."""

    def __init__(self, metrics: dict[str, Tensor]) -> None:
        self.names = list(metrics)
        values = torch.stack([x.double() if x.device.type != "mps" else x.float() for x in metrics.values()])
        if world_size() > 1:
            dist.all_reduce(values)
            values /= world_size()
        self.values = Late(values)

    def read(self) -> dict[str, float]:
        """Return the metrics by name, after waiting until they are copied."""
        return dict(zip(self.names, self.values.read().tolist(), strict=True))
