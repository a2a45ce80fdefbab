"""Contract: a tower encodes each sample of one modality as a single vector, and as one feature per token."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openslip.errors import UserError
from openslip.models.batch_norm import mixes_samples


class Tokens(NamedTuple):
    """Token features, usually after the final norm; `mask` is true for real tokens and false for padding."""

    features: Float[Tensor, "batch tokens width"]
    mask: Bool[Tensor, "batch tokens"]


class Tower(nn.Module, ABC):
    """An encoder of one modality; an image tower is called with `(images)`, and a text tower with `(ids, lengths)`.

    Your own tower defines `width`, `tokens` and `forward`, and for gradient checkpointing also `repeated_blocks`.

    Attributes:
        width: size of the pooled feature, before any projection.
        locked: whether the tower is frozen: it gets no gradients and always stays in eval mode.
        gradient_checkpointing: whether blocks keep only their inputs and run again in the backward pass.
        dynamic_shapes: argument `dynamic` of `torch.compile` for the tower's blocks.
        input_size: size that the position embeddings fix: the side of the images in pixels, or the largest number of
            tokens of a text; None if they fix no size.
        num_prefix_tokens: tokens of an image that come before those of its patches, such as a class token.
    """

    width: int
    locked: bool = False
    gradient_checkpointing: bool = False
    dynamic_shapes: bool | None = None
    input_size: int | None = None
    num_prefix_tokens: int = 0

    @property
    def token_width(self) -> int:
        """Width of a token's feature; the width of the pooled feature may differ."""
        return self.width

    # `*inputs: Any, **_: Any` lets a subclass declare its own arguments without an error of the type checker.
    @abstractmethod
    def tokens(self, *inputs: Any, **_: Any) -> Tokens:
        """Return the features of all tokens."""

    @abstractmethod
    def forward(self, *inputs: Any, **_: Any) -> Float[Tensor, "batch width"]:
        """Return the pooled feature of each sample."""

    def pooled_and_tokens(self, *inputs: Any, **_: Any) -> tuple[Float[Tensor, "batch width"], Tokens]:
        """Return the results of `forward` and `tokens`; override this method if one pass can compute both."""
        return self(*inputs), self.tokens(*inputs)

    @property
    def pretrained_part(self) -> "Tower":
        """The tower to which `towers.*.weights` and `towers.*.locked` apply.

        This is the tower itself or, if it wraps another tower as `WordVectorNetwork` does, the inner one.
        """
        return self

    def known_ids(self) -> Bool[Tensor, " vocabulary"] | None:
        """Return which ids a text tower has learned, or None for all; prediction refuses words with other ids."""
        return None

    @property
    def mixes_samples(self) -> bool:
        """Whether a sample's features depend on the other samples of the batch, as with batch norm in training."""
        return any(mixes_samples(layer) for layer in self.modules())

    def views(self, *views: Float[Tensor, "batch ..."]) -> tuple[Float[Tensor, "batch width"], ...]:
        """Encode several views of the same images, in one pass if their shapes agree and no layer mixes samples."""
        if self.mixes_samples or len({view.shape for view in views}) > 1:
            return tuple(self(view) for view in views)
        return tuple(self(torch.cat(views)).chunk(len(views)))

    def train(self, mode: bool = True) -> "Tower":
        return super().train(mode and not self.locked)

    def lock(self) -> None:
        """Freeze all weights and stay in eval mode: Zhai et al. 2021, arXiv:2111.07991."""
        self.locked = True
        self.requires_grad_(False).eval()

    def repeated_blocks(self) -> Sequence[nn.Module]:
        """Return the blocks that the tower calls through `run`; they can be checkpointed and compiled.

        A last block that computes only the pooled token may be called directly.
        """
        return ()

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        """Return `block(*inputs)`; if `gradient_checkpointing` is on, the block's activations are not kept."""
        return checkpoint(block, *inputs, use_reentrant=False) if self.gradient_checkpointing else block(*inputs)

    def checkpoint_blocks(self) -> None:
        """Turn gradient checkpointing on."""
        if not self.repeated_blocks():
            name = type(self).__name__
            raise UserError(f"gradient_checkpointing=true: {name} has no blocks to checkpoint; set it to false")
        self.gradient_checkpointing = True

    def drop_patches(self, rate: float) -> None:
        """In training, drop the fraction `rate` of each image's patches at random: Li et al. 2022, arXiv:2212.00794."""
        raise UserError(f"patch_dropout={rate}: {type(self).__name__} has no patches to drop; set it to 0")

    def resize(self, input_size: int) -> None:
        """Interpolate position embeddings to another `input_size`, with bicubic interpolation and antialiasing."""
        raise UserError(f"init_from.resize=true: {type(self).__name__} cannot be resized to {input_size}")

    def compiled_modules(self) -> Iterable[nn.Module]:
        """Return the modules to compile: the blocks, or the child modules if there are no blocks.

        Compiling the tower itself would not cover `tokens`.
        """
        return self.repeated_blocks() or self.children()

    def compile_blocks(self) -> None:
        """Compile the blocks in place: parameter names are unchanged, and a copy of the tower uses its own weights."""
        parts = [p for m in self.compiled_modules() for p in (m if isinstance(m, nn.ModuleList) else (m,))]
        # All modules share one cache of compiled graphs. If the cache were full, further modules would run uncompiled.
        torch._dynamo.config.recompile_limit = max(8 * len(parts), torch._dynamo.config.recompile_limit)
        for part in parts:
            part.compile(dynamic=self.dynamic_shapes)


def unpadded(features: Float[Tensor, "batch tokens width"]) -> Tokens:
    """Return features as `Tokens` without padding, as for images."""
    return Tokens(features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device))
