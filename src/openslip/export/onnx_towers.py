"""Towers as functions of one tensor, whose graphs ONNX can hold: padded rows of ids instead of packed ones."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openslip.errors import UserError
from openslip.export.towers import Pooled
from openslip.models.attention import attention
from openslip.models.coca_text import CocaText
from openslip.models.dual_encoder import DualEncoder
from openslip.models.text_transformer import ACTIVATIONS, Block, TextTransformer


class ImageGraph(nn.Module):
    """Encodes prepared images to unit features.

    Args:
        model: a model with `encode_image`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Return features of length 1."""
        return F.normalize(self.model.encode_image(pixels), dim=-1)  # pyright: ignore[reportCallIssue]


class TextGraph(nn.Module):
    """Encodes padded rows of ids to unit features.

    Args:
        model: a model with a text tower of transformer blocks.
        rule: the rule by which the tokenizer finds the pooled position.

    Raises:
        UserError: the text tower is of another class.
    """

    def __init__(self, model: DualEncoder, rule: Pooled) -> None:
        super().__init__()
        if not isinstance(model.text_tower, TextTransformer | CocaText):
            raise UserError(
                f"--to onnx: there is no graph of a {type(model.text_tower).__name__}; use --to safetensors"
            )
        self.model = model
        self.rule = rule

    def forward(self, ids: Int[Tensor, "batch context"]) -> Float[Tensor, "batch embed"]:
        """Return features of length 1."""
        tower, lengths = self.model.text_tower, self.lengths(ids)
        pooled = tower(ids, lengths) if isinstance(tower, CocaText) else self.pooled(ids, lengths)
        return F.normalize(self.model.project_text(pooled), dim=-1)

    def lengths(self, ids: Tensor) -> Int[Tensor, " batch"]:
        """Return how many ids of each row are read: the pooled position plus 1."""
        if self.rule.position == "last":
            return torch.full_like(ids[:, 0], ids.shape[1])
        marks = ids if self.rule.end is None else ids == self.rule.end
        return marks.to(torch.int32).argmax(dim=1) + 1  # some runtimes cannot take the largest of 64-bit integers

    def pooled(self, ids: Tensor, lengths: Tensor) -> Float[Tensor, "batch width"]:
        """Return the pooled feature of each row, with attention over the whole row and a mask."""
        tower = self.model.text_tower
        assert isinstance(tower, TextTransformer)
        size = ids.shape[1]
        real = torch.arange(size) < lengths[:, None]
        # If the mask is causal, no id that is read attends to padding.
        mask = torch.ones(size, size, dtype=torch.bool).tril()[None, None] if tower.causal else real[:, None, None]
        x = tower.token_embedding(ids) + tower.positional_embedding[:size]
        for block in tower.blocks:
            assert isinstance(block, Block)
            x = encode(block, x, mask)
        x = tower.ln_final(x)
        if tower.pooling == "mean":
            return (x * real[:, :, None]).sum(dim=1) / lengths[:, None]
        last = lengths - 1 if tower.pooling == "last" else torch.zeros_like(lengths)
        return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]


def encode(block: Block, x: Float[Tensor, "batch length width"], mask: Tensor) -> Float[Tensor, "batch length width"]:
    """Return what a block of the text transformer computes of padded rows.

    Args:
        block: the block, which is written for packed rows.
        x: features of all positions.
        mask: true where a position may attend to another, of shape [batch or 1, 1, length or 1, length].
    """
    layer = block.attention
    q, k, v = layer.in_proj(block.ln_1(x)).unflatten(2, (3, layer.heads, -1)).permute(2, 0, 3, 1, 4)
    x = x + layer.out_proj(attention(q, k, v, mask).transpose(1, 2).flatten(2))
    return x + block.fc2(ACTIVATIONS[block.activation](block.fc1(block.ln_2(x))))
