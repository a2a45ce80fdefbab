"""The dtype that weights have been rounded to, whatever dtype they are loaded as."""

from collections.abc import Mapping

import torch
from torch import Tensor


def rounded_to(weights: Mapping[str, Tensor]) -> str | None:
    """Return the 16-bit dtype that holds all weights without a change; None if there is none.

    Single values are left out: a file of float16 has them in float32.
    """
    arrays = [weight for weight in weights.values() if weight.is_floating_point() and weight.ndim]
    for dtype in (torch.float16, torch.bfloat16):
        if all(torch.equal(weight.to(dtype).to(weight.dtype), weight) for weight in arrays):
            return str(dtype).removeprefix("torch.")
    return None
