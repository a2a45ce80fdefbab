"""Whether a step's numbers are numbers, decided on the device: reading a tensor would make every step wait."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def marked(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The loss, whose gradients are all NaN where it is not finite, so that the mean over ranks tells every rank."""
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def is_finite(tensors: list[Tensor]) -> Bool[Tensor, ""]:
    """Whether the norm over all of them is a number."""
    return torch.nn.utils.get_total_norm(tensors).isfinite()


class LateReader:
    """Reads a figure one step after it was computed, when the device has long had it."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.host = torch.zeros((), dtype=torch.int64, pin_memory=self.on_gpu)
        self.copied: torch.cuda.Event | None = None

    def __call__(self, figure: Tensor) -> int:
        """The figure that was given before this one, 0 at first."""
        if self.copied is not None:
            self.copied.synchronize()
        before = int(self.host)
        self.host.copy_(figure, non_blocking=True)
        if self.on_gpu:
            self.copied = torch.cuda.Event()
            self.copied.record()
        return before
