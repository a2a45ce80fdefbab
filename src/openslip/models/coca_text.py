"""CoCa's text tower: a class embedding after the words pools them. Yu et al. 2022, arXiv:2205.01917, section 3.2.

The mask is that of open_clip, with which its models were trained: it is shifted by one position. A key is visible if
the id before it is no padding. In a caption shorter than the context, the class embedding therefore attends to the
first padding position, and not to itself.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openslip.models.attention import attention
from openslip.models.text_transformer import ACTIVATIONS, Block
from openslip.models.tower import Tokens, Tower

PAD = 0  # CLIP's vocabulary has the word "!" at this id, which is masked like padding


class CocaText(Tower):
    """A causal transformer over the words of a caption and a learned class embedding after them.

    Args:
        vocab_size: number of token ids.
        context_length: ids per caption; shorter captions are padded to it, because the class embedding attends to the
            first padding position.
        width: width of token features and of the pooled feature.
        depth: number of blocks.
        heads: attention heads per block.
        activation: activation of the MLPs: `quick_gelu`, `gelu` or `gelu_tanh`.
        norm_eps: epsilon of the layer norms.
        mlp_width: width of the MLPs' hidden layer.
    """

    dynamic_shapes = True

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        width: int,
        depth: int,
        heads: int,
        activation: str,
        norm_eps: float,
        mlp_width: int,
    ) -> None:
        super().__init__()
        self.width = width
        self.context_length = self.input_size = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(context_length + 1, width))
        self.blocks = nn.ModuleList(
            PaddedBlock(width, heads, activation, causal=True, norm_eps=norm_eps, mlp_width=mlp_width)
            for _ in range(depth)
        )
        self.ln_final = nn.LayerNorm(width, eps=norm_eps)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for embedding in (self.class_embedding, self.positional_embedding):
            nn.init.normal_(embedding, std=0.01)

    def repeated_blocks(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def forward(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /
    ) -> Float[Tensor, "batch width"]:
        """Return the class embedding after the final layer norm; ids at position `lengths` and later are ignored."""
        return self.ln_final(self.rows(self.padded(ids, lengths))[:, -1])

    def tokens(self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /) -> Tokens:
        """Return the features of the words, which the decoder of captions takes without a final norm."""
        words = self.padded(ids, lengths)
        return Tokens(self.rows(words)[:, :-1], words != PAD)

    def padded(self, ids: Tensor, lengths: Tensor) -> Int[Tensor, "batch context"]:
        """Return rows of the full context length, with padding at position `lengths` and later."""
        words = F.pad(ids, (0, self.context_length - ids.shape[1]), value=PAD)
        positions = torch.arange(self.context_length, device=ids.device)
        return words.masked_fill(positions >= lengths.to(ids.device)[:, None], PAD)

    def rows(self, words: Int[Tensor, "batch context"]) -> Float[Tensor, "batch positions width"]:
        """Return the features of all words and of the class embedding, before the final norm."""
        x = torch.cat([self.token_embedding(words), self.class_embedding.expand(words.shape[0], 1, -1)], dim=1)
        x = x + self.positional_embedding
        visible = F.pad(words != PAD, (1, 0), value=True)  # position i + 1 is visible if word i is not padding
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        mask = causal & visible[:, None, None]
        for block in self.blocks:
            x = self.run(block, x, mask)
        return x


class PaddedBlock(Block):
    """A block of the text transformer with the same weights, for padded rows and any mask."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "batch positions width"], mask: Bool[Tensor, "batch 1 positions positions"]
    ) -> Float[Tensor, "batch positions width"]:
        y = self.attention.in_proj(self.ln_1(x)).unflatten(2, (3, self.attention.heads, -1))
        q, k, v = y.permute(2, 0, 3, 1, 4)
        x = x + self.attention.out_proj(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.fc2(ACTIVATIONS[self.activation](self.fc1(self.ln_2(x))))
