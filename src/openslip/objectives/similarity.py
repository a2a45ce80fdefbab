"""Features that are compared by cosine: unit length, gathered over ranks once however many losses use them."""

from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from openslip.distributed import gather, rank


class Features:
    """This rank's unit-length features, and those of all ranks.

    Args:
        features: of this rank's samples, of any length; compared in float32 at least.
        gather_with_grad: whether gradients reach the features of other ranks.
    """

    def __init__(self, features: Float[Tensor, "local dim"], *, gather_with_grad: bool) -> None:
        self.local = unit_length(features)
        self.gather_with_grad = gather_with_grad

    @cached_property
    def all(self) -> Float[Tensor, "world dim"]:
        """Features of all ranks in the order of the global batch; every rank must ask for them."""
        return gather(self.local, with_grad=self.gather_with_grad)

    @cached_property
    def places(self) -> Int[Tensor, " local"]:
        """Places of this rank's samples in the global batch."""
        return places(self.local)


def unit_length(x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """Rows of length 1, in float32 at least."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def places(x: Float[Tensor, "local dim"]) -> Int[Tensor, " local"]:
    """Places of this rank's rows among those of all ranks."""
    return rank() * len(x) + torch.arange(len(x), device=x.device)
