"""Features to compare by cosine: scaled to unit length, and gathered over ranks once for all losses that use them."""

from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from openslip.distributed import gather, rank


class Features:
    """Unit-length features of this rank's samples and, gathered when first read, of all ranks.

    Args:
        features: features of this rank's samples, not normalised; 16-bit ones are cast to float32.
        gather_with_grad: whether gradients flow into the features of `all`, at every number of ranks.
    """

    def __init__(self, features: Float[Tensor, "local dim"], *, gather_with_grad: bool) -> None:
        self.local = unit_length(features)
        self.gather_with_grad = gather_with_grad

    @cached_property
    def all(self) -> Float[Tensor, "world dim"]:
        """Features of all ranks in the order of the global batch; a collective call, so every rank must read it."""
        return gather(self.local, with_grad=self.gather_with_grad)

    @cached_property
    def places(self) -> Int[Tensor, " local"]:
        """Indices of this rank's samples in the global batch."""
        return places(self.local)


def unit_length(x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """Normalise each row to Euclidean length 1, in float64 for float64 input and in float32 otherwise."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def places(x: Float[Tensor, "local dim"]) -> Int[Tensor, " local"]:
    """Return the indices of this rank's rows among the rows of all ranks."""
    return rank() * len(x) + torch.arange(len(x), device=x.device)
