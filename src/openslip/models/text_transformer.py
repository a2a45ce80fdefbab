"""CLIP's causal text transformer, initialised as published SLIP. Radford et al. 2021, arXiv:2103.00020, section 2.4."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class TextTransformer(nn.Module):
    """Token ids to the feature at each caption's pooled position, after the final norm.

    Args:
        vocab_size: number of token ids.
        context_length: longest caption in tokens; shorter batches need no padding up to it.
        width: size of a token feature, and of the output.
        depth: number of blocks.
        heads: attention heads per block.
    """

    def __init__(self, *, vocab_size: int, context_length: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.ln_final = nn.LayerNorm(width)
        self.initialise()

    def initialise(self) -> None:
        """Published standard deviations: docs/NUMERICS.md#text-initialisation."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        residual_std = self.width**-0.5 * (2 * len(self.blocks)) ** -0.5
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attention.in_proj.weight, std=self.width**-0.5)
            nn.init.zeros_(block.attention.in_proj.bias)
            nn.init.normal_(block.attention.out_proj.weight, std=residual_std)
            nn.init.zeros_(block.attention.out_proj.bias)
            nn.init.normal_(block.fc1.weight, std=(2 * self.width) ** -0.5)
            nn.init.normal_(block.fc2.weight, std=residual_std)

    def forward(
        self, text: Int[Tensor, "batch length"], text_length: Int[Tensor, " batch"], /
    ) -> Float[Tensor, "batch width"]:
        x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        pooled = x[torch.arange(len(x), device=x.device), text_length - 1]  # the norm is per token: pool first
        return self.ln_final(pooled)


class Block(nn.Module):
    """Pre-norm residual block: attention, then a GELU network of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        x = x + self.attention(self.ln_1(x))
        return x + self.fc2(quick_gelu(self.fc1(self.ln_2(x))))


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        batch, length, width = x.shape
        q, k, v = self.in_proj(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [B, H, L, W/H]
        if x.device.type == "cpu" and q.dtype == torch.bfloat16:
            q, k, v = q.float(), k.float(), v.float()  # the bf16 kernel's backward on CPU is 7 times slower
        with torch.autocast(x.device.type, enabled=False):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, width))


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """CLIP's approximation x * sigmoid(1.702 x), which the published text tower uses."""
    return x * torch.sigmoid(1.702 * x)
