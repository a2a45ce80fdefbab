"""Contract: a tower turns one modality into a vector per sample, and into features of its tokens."""

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
    """Features of tokens, after the final norm; `mask` is true where a token is real, false where it is padding."""

    features: Float[Tensor, "batch tokens width"]
    mask: Bool[Tensor, "batch tokens"]


class Tower(nn.Module, ABC):
    """An image tower is called with `(images)`, a text tower with `(ids, lengths)`.

    A tower of your own has `width`, `tokens` and `forward`; gradient checkpointing also needs `repeated_blocks`.

    Attributes:
        width: size of the pooled feature, before any projection.
        locked: no gradients, and eval mode for good.
        gradient_checkpointing: blocks keep their inputs alone and run again in the backward pass.
        dynamic_shapes: as `torch.compile` takes `dynamic`.
        input_size: side of the images in pixels, or tokens of the longest text, where position embeddings fix it.
    """

    width: int
    locked: bool = False
    gradient_checkpointing: bool = False
    dynamic_shapes: bool | None = None
    input_size: int | None = None

    @property
    def token_width(self) -> int:
        """Size of a token feature."""
        return self.width

    # `*inputs: Any, **_: Any` is how typing spells "some arguments", which a tower narrows to its own.
    @abstractmethod
    def tokens(self, *inputs: Any, **_: Any) -> Tokens:
        """Features of all tokens."""

    @abstractmethod
    def forward(self, *inputs: Any, **_: Any) -> Float[Tensor, "batch width"]:
        """The pooled feature."""

    def pooled_and_tokens(self, *inputs: Any, **_: Any) -> tuple[Float[Tensor, "batch width"], Tokens]:
        """Return what `forward` and `tokens` do, here in two passes; override it where one pass makes both."""
        return self(*inputs), self.tokens(*inputs)

    @property
    def mixes_samples(self) -> bool:
        """Whether a sample's features depend on the rest of the batch, as those of batch norm in training do."""
        return any(mixes_samples(layer) for layer in self.modules())

    def views(self, *views: Float[Tensor, "batch ..."]) -> tuple[Float[Tensor, "batch width"], ...]:
        """Features of several views of the same images, in one pass where sizes agree and no layer mixes samples."""
        if self.mixes_samples or len({view.shape for view in views}) > 1:
            return tuple(self(view) for view in views)
        return tuple(self(torch.cat(views)).chunk(len(views)))

    def train(self, mode: bool = True) -> "Tower":
        return super().train(mode and not self.locked)

    def lock(self) -> None:
        """Stop training for good: Zhai et al. 2021, arXiv:2111.07991."""
        self.locked = True
        self.requires_grad_(False).eval()

    def repeated_blocks(self) -> Sequence[nn.Module]:
        """The modules that the tower calls by `run`, which are checkpointed and compiled."""
        return ()

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        """`block(*inputs)`, whose activations are not kept where `gradient_checkpointing` is on."""
        return checkpoint(block, *inputs, use_reentrant=False) if self.gradient_checkpointing else block(*inputs)

    def checkpoint_blocks(self) -> None:
        """Turn gradient checkpointing on."""
        if not self.repeated_blocks():
            name = type(self).__name__
            raise UserError(f"gradient_checkpointing=true: {name} has no blocks to checkpoint; set it to false")
        self.gradient_checkpointing = True

    def drop_patches(self, rate: float) -> None:
        """In training each image loses this share of its patches, drawn anew: Li et al. 2022, arXiv:2212.00794."""
        raise UserError(f"patch_dropout={rate}: {type(self).__name__} has no patches to leave out; set it to 0")

    def resize(self, input_size: int) -> None:
        """Interpolate position embeddings to another `input_size`, bicubic and antialiased."""
        raise UserError(f"init_from.resize=true: {type(self).__name__} cannot be brought to size {input_size}")

    def compiled_modules(self) -> Iterable[nn.Module]:
        """The blocks, or each child where there are none: compiling the tower itself would miss `tokens`."""
        return self.repeated_blocks() or self.children()

    def compile_blocks(self) -> None:
        """Compile in place, so that names of parameters stay and a copy of the tower runs its own weights."""
        parts = [p for m in self.compiled_modules() for p in (m if isinstance(m, nn.ModuleList) else (m,))]
        # All modules share one cache of compiled forms, and what it does not hold runs as it is.
        torch._dynamo.config.recompile_limit = max(8 * len(parts), torch._dynamo.config.recompile_limit)
        for part in parts:
            part.compile(dynamic=self.dynamic_shapes)


def unpadded(features: Float[Tensor, "batch tokens width"]) -> Tokens:
    """Tokens that are all real, as those of images."""
    return Tokens(features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device))
