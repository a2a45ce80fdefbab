"""Two views of captions as one batch, which a text tower encodes in one pass."""

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor


def stacked(
    ids: Int[Tensor, "batch length"],
    lengths: Int[Tensor, " batch"],
    ids2: Int[Tensor, "batch length2"],
    lengths2: Int[Tensor, " batch"],
) -> tuple[Int[Tensor, "both longest"], Int[Tensor, " both"]]:
    """Stack two views of captions into one batch, padded to the longer width; a text tower ignores the padding."""
    longest = max(ids.shape[1], ids2.shape[1])
    return torch.cat([F.pad(x, (0, longest - x.shape[1])) for x in (ids, ids2)]), torch.cat([lengths, lengths2])
