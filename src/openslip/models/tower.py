"""Contract: a tower turns one modality into one vector per sample."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Tower(nn.Module, ABC):
    """An image tower: `width` is the size of its output, before any projection."""

    width: int
    mixes_samples: bool = False  # batch norm inside: its views run apart, and slices are refused unless it is frozen

    @abstractmethod
    def tokens(self, x: Tensor, /) -> Float[Tensor, "batch tokens width"]:
        """All token features, after the final norm."""

    @abstractmethod
    def forward(self, x: Tensor, /) -> Float[Tensor, "batch width"]:
        """The pooled feature."""

    def views(self, *views: Float[Tensor, "batch ..."]) -> tuple[Float[Tensor, "batch width"], ...]:
        """Features of several views of the same samples, in one pass where sizes agree and no layer mixes samples."""
        if self.mixes_samples or len({view.shape for view in views}) > 1:
            return tuple(self(view) for view in views)
        return tuple(self(torch.cat(views)).chunk(len(views)))
