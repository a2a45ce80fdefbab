"""Features for comparison by cosine: scaled to unit length, and gathered over ranks once, for all losses."""

from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from openslip.distributed import gather, rank


class Features:
    """Unit-length features of this rank's samples; the features of all ranks are gathered when `all` is first read.

    Args:
        features: features of this rank's samples, before normalisation; 16-bit features are cast to float32.
        gather_with_grad: whether gradients flow into the features of `all`, for any number of ranks, even one.
        epsilon: as in `unit_length`.
    """

    def __init__(self, features: Float[Tensor, "local dim"], *, gather_with_grad: bool, epsilon: float = 0.0) -> None:
        self.local = unit_length(features, epsilon)
        self.gather_with_grad = gather_with_grad

    @cached_property
    def all(self) -> Float[Tensor, "global dim"]:
        """Features of all ranks in the order of the global batch; reading them is a collective call on all ranks."""
        return gather(self.local, with_grad=self.gather_with_grad)

    @cached_property
    def places(self) -> Int[Tensor, " local"]:
        """Indices of this rank's samples in the global batch."""
        return places(self.local)


def unit_length(x: Float[Tensor, "rows dim"], epsilon: float = 0.0) -> Float[Tensor, "rows dim"]:
    """Normalise each row to Euclidean length 1, in float64 for float64 input and in float32 otherwise.

    Args:
        x: the rows.
        epsilon: number added to the length of each row before the division. Only the faithful mode of DeCLIP's methods
            sets one: docs/NUMERICS.md#declip.
    """
    x = x if x.dtype == torch.float64 else x.float()
    return x / (x.norm(dim=-1, keepdim=True) + epsilon) if epsilon else F.normalize(x, dim=-1)


def places(x: Float[Tensor, "local dim"]) -> Int[Tensor, " local"]:
    """Return the indices of this rank's rows among the rows of all ranks."""
    return rank() * len(x) + torch.arange(len(x), device=x.device)
