"""CLIP's causal text transformer, initialised as published SLIP. Radford et al. 2021, arXiv:2103.00020, section 2.4.

Padding is never multiplied: all layers see one row per real token, and the last block computes the pooled ones alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openslip.models.attention import attention, compute_dtype, varlen_attention, varlen_is_possible
from openslip.models.packing import Buckets, Packing, pack
from openslip.models.tower import Tokens, Tower


class TextTransformer(Tower):
    """Token ids to the feature at each caption's pooled position, after the final norm.

    Args:
        vocab_size: number of token ids.
        context_length: longest caption in tokens; shorter batches need no padding up to it.
        width: size of a token feature, and of the output.
        depth: number of blocks.
        heads: attention heads per block.
    """

    dynamic_shapes = True  # each batch has another number of tokens

    def __init__(self, *, vocab_size: int, context_length: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.head_dim = width // heads
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

    def repeated_blocks(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def forward(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /
    ) -> Float[Tensor, "batch width"]:
        """`lengths` are the pooled positions + 1; later tokens do not matter. On the CPU they cost no wait."""
        packing = self.pack(ids, lengths)
        *before, last = self.blocks
        x = self.embed(ids, packing)
        for block in before:
            x = self.run(block, x, packing)
        x = last(x, packing, pooled=True)
        return self.ln_final(x).index_select(0, packing.unsorted)

    def tokens(self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /) -> Tokens:
        """Features of the tokens up to the pooled one, zeros after it."""
        return self.pooled_and_tokens(ids, lengths)[1]

    def pooled_and_tokens(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /
    ) -> tuple[Float[Tensor, "batch width"], Tokens]:
        packing = self.pack(ids, lengths)
        x = self.embed(ids, packing)
        for block in self.blocks:
            x = self.run(block, x, packing)
        x = self.ln_final(x)
        pooled = x.index_select(0, packing.last).index_select(0, packing.unsorted)
        features = x.new_zeros(ids.numel(), self.width).index_copy(0, packing.tokens, x)
        mask = torch.zeros(ids.numel(), dtype=torch.bool, device=ids.device).index_fill(0, packing.tokens, True)
        return pooled, Tokens(features.view(*ids.shape, -1), mask.view(ids.shape))

    def pack(self, ids: Tensor, lengths: Tensor) -> Packing:
        """Where the tokens of these captions lie among the rows of the blocks."""
        in_buckets = not varlen_is_possible(ids.device, compute_dtype(self.positional_embedding), self.head_dim)
        return pack(lengths, ids.shape[1], ids.device, longest=self.context_length, in_buckets=in_buckets)

    def embed(self, ids: Tensor, packing: Packing) -> Float[Tensor, "rows width"]:
        """Token and position embeddings of the real tokens."""
        packed = ids.flatten().index_select(0, packing.tokens)
        return self.token_embedding(packed) + F.embedding(packing.positions, self.positional_embedding)


class Block(nn.Module):
    """Pre-norm residual block: attention, then a GELU network of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(
        self, x: Float[Tensor, "rows width"], packing: Packing, *, pooled: bool = False
    ) -> Float[Tensor, "rows_or_captions width"]:
        """All tokens, or the last one of each caption."""
        y = self.ln_1(x)
        if pooled:
            x = x.index_select(0, packing.last) + self.attention.last(y, packing)
        else:
            x = x + self.attention(y, packing)
        return x + self.fc2(quick_gelu(self.fc1(self.ln_2(x))))


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and those of its caption before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "rows width"], packing: Packing) -> Float[Tensor, "rows width"]:
        qkv = self.in_proj(x).unflatten(1, (3, self.heads, -1))  # [rows, 3, heads, dim]
        if packing.buckets is None:
            q, k, v = qkv.unbind(1)
            y = varlen_attention(q, k, v, packing.starts, packing.starts, packing.longest, packing.longest, causal=True)
        else:
            y = causal_in_buckets(qkv, packing.buckets)
        return self.out_proj(y.flatten(1))

    def last(self, x: Float[Tensor, "rows width"], packing: Packing) -> Float[Tensor, "captions width"]:
        """What `forward` gives for the last token of each caption, which sees the whole caption."""
        width = x.shape[1]
        q_weight, kv_weight = self.in_proj.weight.split([width, 2 * width])
        q_bias, kv_bias = self.in_proj.bias.split([width, 2 * width])
        q = F.linear(x.index_select(0, packing.last), q_weight, q_bias).unflatten(1, (self.heads, -1))
        kv = F.linear(x, kv_weight, kv_bias).unflatten(1, (2, self.heads, -1))  # [rows, 2, heads, dim]
        if packing.buckets is None:
            k, v = kv.unbind(1)
            one_each = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
            y = varlen_attention(q, k, v, one_each, packing.starts, 1, packing.longest, causal=False)
        else:
            y = last_in_buckets(q, kv, packing.buckets)
        return self.out_proj(y.flatten(1))


@torch.compiler.disable()  # each batch has other buckets, so a compiled form would never be used twice
def causal_in_buckets(qkv: Float[Tensor, "rows 3 heads dim"], buckets: Buckets) -> Float[Tensor, "rows heads dim"]:
    parts = qkv.index_select(0, buckets.rows).split([captions * length for captions, length in buckets.shapes])
    attended = []
    for shape, part in zip(buckets.shapes, parts, strict=True):
        q, k, v = part.unflatten(0, shape).permute(2, 0, 3, 1, 4)  # [captions, heads, length, dim]
        attended.append(attention(q, k, v, causal=True).transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, buckets.places)


@torch.compiler.disable()
def last_in_buckets(
    q: Float[Tensor, "captions heads dim"], kv: Float[Tensor, "rows 2 heads dim"], buckets: Buckets
) -> Float[Tensor, "captions heads dim"]:
    sizes = [captions * length for captions, length in buckets.shapes]
    parts = zip(
        buckets.shapes,
        q.split([captions for captions, _ in buckets.shapes]),
        kv.index_select(0, buckets.rows).split(sizes),
        buckets.real.split(sizes),
        strict=True,
    )
    attended = []
    for shape, queries, part, real in parts:
        k, v = part.unflatten(0, shape).permute(2, 0, 3, 1, 4)  # [captions, heads, length, dim]
        y = attention(queries[:, :, None], k, v, real.view(shape)[:, None, None])
        attended.append(y[:, :, 0])
    return torch.cat(attended)


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """CLIP's approximation x * sigmoid(1.702 x), which the published text tower uses."""
    return x * torch.sigmoid(1.702 * x)
