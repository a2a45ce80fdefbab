"""Contract: a tower turns one modality into one vector per sample."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openslip.errors import UserError


class Tower(nn.Module, ABC):
    """An image tower: `width` is the size of its output, before any projection."""

    width: int
    mixes_samples: bool = False  # batch norm inside: its views run apart, and slices are refused unless it is frozen
    locked: bool = False

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

    def train(self, mode: bool = True) -> "Tower":
        return super().train(mode and not self.locked)

    def lock(self) -> None:
        """No gradients, and eval mode for good: Zhai et al. 2021, arXiv:2111.07991."""
        self.locked = True
        self.requires_grad_(False).eval()

    def checkpoint_blocks(self) -> None:
        """Blocks keep their input alone and run again in the backward pass."""
        raise UserError(
            f"towers.image.gradient_checkpointing=true: {type(self).__name__} does not support it; set it to false"
        )

    def drop_patches(self, rate: float) -> None:
        """In training each picture loses this share of its patches, drawn anew: Li et al. 2022, arXiv:2212.00794."""
        raise UserError(
            f"towers.image.patch_dropout={rate}: {type(self).__name__} has no patches to leave out; set it to 0"
        )

    def compile_blocks(self) -> None:
        """By `torch.compile`; names of parameters stay."""
        self.compile()
