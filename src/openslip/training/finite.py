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
