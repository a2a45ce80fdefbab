"""An image tower whose tokens are pooled by learned queries, as in CoCa. Yu et al. 2022, arXiv:2205.01917, section 3.2.

The names of the weights are ours; the order of norms is that of open_clip (coca_model.py, transformer.py).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openslip.errors import UserError
from openslip.models.attention import attention
from openslip.models.tower import Tokens, Tower, unpadded


class AttentionalPooling(Tower):
    """Wraps an image tower: each query attends to all tokens, and the first query's output is the pooled feature.

    Args:
        tower: tower without a final layer norm; this class applies its own.
        queries: number of learned queries; all but the first are for a decoder of captions.
        heads: attention heads.
        width: width of queries and outputs.
        norm_eps: epsilon of the layer norms.

    Raises:
        UserError: the heads do not divide the width.
    """

    def __init__(self, *, tower: Tower, queries: int, heads: int, width: int, norm_eps: float) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"heads={heads} do not divide width={width}")
        self.tower = tower
        self.width = width
        self.heads = heads
        self.input_size = tower.input_size
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.norm_queries = nn.LayerNorm(width, eps=norm_eps)
        self.norm_tokens = nn.LayerNorm(tower.token_width, eps=norm_eps)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(tower.token_width, width)
        self.v_proj = nn.Linear(tower.token_width, width)
        self.out_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        nn.init.normal_(self.queries)

    def forward(self, images: Float[Tensor, "batch 3 height width"], /) -> Float[Tensor, "batch features"]:
        return self.pooled(images, self.queries[:1])[:, 0]

    def tokens(self, images: Float[Tensor, "batch 3 height width"], /) -> Tokens:
        """Return the outputs of all queries but the first."""
        return unpadded(self.pooled(images, self.queries[1:]))

    def pooled(
        self, images: Float[Tensor, "batch 3 height width"], queries: Float[Tensor, "queries embed"]
    ) -> Float[Tensor, "batch queries embed"]:
        """Return the outputs of these queries after the final layer norm; they do not depend on each other."""
        x = self.norm_tokens(self.tower.tokens(images).features)
        q = self.q_proj(self.norm_queries(queries)).expand(x.shape[0], -1, -1)
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q, self.k_proj(x), self.v_proj(x)))
        return self.norm(self.out_proj(attention(q, k, v).transpose(1, 2).flatten(2)))

    def repeated_blocks(self) -> list[nn.Module]:
        return list(self.tower.repeated_blocks())

    def checkpoint_blocks(self) -> None:
        self.tower.checkpoint_blocks()
        self.gradient_checkpointing = True
