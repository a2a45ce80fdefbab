"""CLIP's text transformer, initialised as in published SLIP. Radford et al. 2021, arXiv:2103.00020, section 2.4.

Each layer computes one row per real token. Padding costs something only if the attention kernel needs it. If only one
token per caption is pooled and no other features are requested, the last block computes only the pooled token. Within
`sharing_prefixes`, `forward` computes each prefix only once for all captions that share it, if the tower is causal, the
pooling is not `mean`, and attention runs in buckets.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openslip.errors import UserError
from openslip.models.attention import attention, compute_dtype, varlen_attention, varlen_is_possible
from openslip.models.packing import Buckets, Packing, pack
from openslip.models.prefix_sharing import share_prefixes, shares_prefixes
from openslip.models.tower import Tokens, Tower


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Approximate GELU by x * sigmoid(1.702 x), as the published text tower does."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}
POOLINGS = ("last", "first", "mean")


class TextTransformer(Tower):
    """A transformer that encodes captions; its options default to those of the published text tower of CLIP and SLIP.

    Args:
        vocab_size: number of token ids.
        context_length: largest number of tokens per caption; shorter captions need not be padded to this length.
        width: width of token features and of the pooled feature.
        depth: number of blocks.
        heads: attention heads per block.
        activation: activation of the MLPs: `quick_gelu`, `gelu`, or its approximation `gelu_tanh`.
        causal: whether a token attends only to itself and to earlier tokens; if false, it attends to the whole caption.
        pooling: feature of a caption: the feature of its `last` token (position length - 1), the feature of its `first`
            token, or the `mean` of the features of all its tokens.
        norm_eps: epsilon added to the variance in layer norms.
        mlp_width: width of the MLPs' hidden layer; None for four times the width.

    Raises:
        UserError: the activation or pooling is unknown, or arguments contradict each other.
    """

    dynamic_shapes = True  # because the number of tokens differs from batch to batch

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        width: int,
        depth: int,
        heads: int,
        activation: str = "quick_gelu",
        causal: bool = True,
        pooling: str = "last",
        norm_eps: float = 1e-5,
        mlp_width: int | None = None,
    ) -> None:
        super().__init__()
        for key, value, known in (("activation", activation, ACTIVATIONS), ("pooling", pooling, POOLINGS)):
            if value not in known:
                raise UserError(f"{key}={value}: expected one of {', '.join(known)}")
        if causal and pooling == "first":
            raise UserError("pooling=first with causal=true: the first token attends only to itself; set causal=false")
        if width % heads:
            raise UserError(f"heads={heads} do not divide width={width}")
        self.width = width
        self.causal = causal
        self.pooling = pooling
        self.head_dim = width // heads
        self.context_length = self.input_size = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        mlp_width = 4 * width if mlp_width is None else mlp_width
        self.blocks = nn.ModuleList(Block(width, heads, activation, causal, norm_eps, mlp_width) for _ in range(depth))
        self.ln_final = nn.LayerNorm(width, eps=norm_eps)
        self.initialise()

    def initialise(self) -> None:
        """Draw the weights with the published standard deviations: docs/NUMERICS.md#text-initialisation."""
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

    def resize(self, input_size: int) -> None:
        # Treat the embeddings as an image [tokens, width], because torch's antialiased interpolation
        # gives wrong results for images of width 1.
        image = self.positional_embedding.detach()[None, None]
        image = F.interpolate(image, size=(input_size, self.width), mode="bicubic", antialias=True)
        self.positional_embedding = nn.Parameter(image[0, 0])
        self.context_length = self.input_size = input_size

    def forward(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /
    ) -> Float[Tensor, "batch width"]:
        """Return the pooled feature of each caption; ids at position `lengths` and later are ignored.

        Args:
            ids: token ids, padded on the right.
            lengths: number of tokens of each caption. With `pooling="last"`, this is the pooled position plus 1. Keep
                the lengths on the CPU, because reading them from a GPU synchronises with the GPU.
        """
        if self.pooling == "mean":
            return self.pooled_and_tokens(ids, lengths)[0]
        packing = self.pack(ids, lengths, share=self.causal and shares_prefixes())
        return self.rows(ids, packing, self.pooled_rows(packing)).index_select(0, packing.unsorted)

    def tokens(self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /) -> Tokens:
        """Return the features of all tokens; features at position `lengths` and later are zero and masked."""
        return self.pooled_and_tokens(ids, lengths)[1]

    def pooled_and_tokens(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /
    ) -> tuple[Float[Tensor, "batch width"], Tokens]:
        packing = self.pack(ids, lengths)
        x = self.rows(ids, packing)
        features = x.new_zeros(ids.numel(), self.width).index_copy(0, packing.tokens, x).view(*ids.shape, -1)
        mask = torch.zeros(ids.numel(), dtype=torch.bool, device=ids.device).index_fill(0, packing.tokens, True)
        mask = mask.view(ids.shape)
        if self.pooling == "mean":
            pooled = features.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        else:
            pooled = x.index_select(0, self.pooled_rows(packing)).index_select(0, packing.unsorted)
        return pooled, Tokens(features, mask)

    def rows(self, ids: Tensor, packing: Packing, pooled: Tensor | None = None) -> Float[Tensor, "rows width"]:
        """Return the features of all real tokens; if `pooled` is given, return only these rows, one per caption.

        Each row in `pooled` must attend to its whole caption.
        """
        packed = ids.flatten().index_select(0, packing.tokens)
        x = self.token_embedding(packed) + F.embedding(packing.positions, self.positional_embedding)
        *before, last = self.blocks
        for block in before:
            x = self.run(block, x, packing)
        # If the last block computes only the pooled rows, it keeps few activations, and checkpointing it would save
        # little. Otherwise it is treated like the other blocks.
        x = self.run(last, x, packing) if pooled is None else last(x, packing, pooled)
        return self.ln_final(x)

    def pooled_rows(self, packing: Packing) -> Int[Tensor, " captions"]:
        return packing.last if self.pooling == "last" else packing.starts[:-1]

    def pack(self, ids: Tensor, lengths: Tensor, *, share: bool = False) -> Packing:
        """Return the packing of these captions, with buckets if the attention kernel needs padding.

        If `share` is true and there are buckets, prefixes that captions share have one row.
        """
        in_buckets = not varlen_is_possible(ids.device, compute_dtype(self.positional_embedding), self.head_dim)
        packing = pack(lengths, ids.shape[1], longest=self.context_length, in_buckets=in_buckets)
        if share and in_buckets:
            packing = share_prefixes(packing, ids.cpu())
        return packing.to(ids.device)


class Block(nn.Module):
    """Pre-norm residual block: attention, then an MLP with one hidden layer."""

    def __init__(self, width: int, heads: int, activation: str, causal: bool, norm_eps: float, mlp_width: int) -> None:
        super().__init__()
        self.activation = activation
        self.ln_1 = nn.LayerNorm(width, eps=norm_eps)
        self.attention = SelfAttention(width, heads, causal)
        self.ln_2 = nn.LayerNorm(width, eps=norm_eps)
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(
        self, x: Float[Tensor, "rows width"], packing: Packing, pooled: Int[Tensor, " captions"] | None = None
    ) -> Float[Tensor, "rows_or_captions width"]:
        """Return the block's output for all rows; if `pooled` is given, return only these rows, one per caption."""
        y = self.ln_1(x)
        if pooled is None:
            x = x + self.attention(y, packing)
        else:
            x = x.index_select(0, pooled) + self.attention.pooled(y, packing, pooled)
        return x + self.fc2(ACTIVATIONS[self.activation](self.fc1(self.ln_2(x))))


class SelfAttention(nn.Module):
    """Multi-head self-attention within each caption; if `causal`, a token attends to itself and earlier tokens only."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "rows width"], packing: Packing) -> Float[Tensor, "rows width"]:
        qkv = self.in_proj(x).unflatten(1, (3, self.heads, -1))  # [rows, 3, heads, dim]
        if packing.buckets is None:
            q, k, v = qkv.unbind(1)
            starts, longest = packing.starts, packing.longest
            y = varlen_attention(q, k, v, starts, starts, longest, longest, causal=self.causal)
        else:
            y = attention_in_buckets(qkv, packing.buckets, causal=self.causal)
        return self.out_proj(y.flatten(1))

    def pooled(
        self, x: Float[Tensor, "rows width"], packing: Packing, pooled: Int[Tensor, " captions"]
    ) -> Float[Tensor, "captions width"]:
        """Return the attention output for the rows `pooled`, one per caption.

        It equals the output of `forward` for these rows if each of these tokens may attend to its whole caption.
        """
        width = x.shape[1]
        q_weight, kv_weight = self.in_proj.weight.split([width, 2 * width])
        q_bias, kv_bias = self.in_proj.bias.split([width, 2 * width])
        q = F.linear(x.index_select(0, pooled), q_weight, q_bias).unflatten(1, (self.heads, -1))
        kv = F.linear(x, kv_weight, kv_bias).unflatten(1, (2, self.heads, -1))  # [rows, 2, heads, dim]
        if packing.buckets is None:
            k, v = kv.unbind(1)
            one_each = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
            y = varlen_attention(q, k, v, one_each, packing.starts, 1, packing.longest, causal=False)
        else:
            y = pooled_in_buckets(q, kv, packing.buckets)
        return self.out_proj(y.flatten(1))


@torch.compiler.disable()  # bucket shapes differ from batch to batch, so a compiled graph would not be reused
def attention_in_buckets(
    qkv: Float[Tensor, "rows 3 heads dim"], buckets: Buckets, *, causal: bool
) -> Float[Tensor, "rows heads dim"]:
    sizes = [captions * length for captions, length in buckets.shapes]
    parts = zip(buckets.shapes, qkv.index_select(0, buckets.rows).split(sizes), buckets.real.split(sizes), strict=True)
    attended = []
    for shape, part, real in parts:
        q, k, v = part.unflatten(0, shape).permute(2, 0, 3, 1, 4)  # [captions, heads, length, dim]
        mask = None if causal else real.view(shape)[:, None, None]  # if causal, no real token attends to padding
        attended.append(attention(q, k, v, mask, causal=causal).transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, buckets.places)


@torch.compiler.disable()
def pooled_in_buckets(
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
