"""A text tower without order: the weighted mean of the rows of a text's distinct tokens, such as word vectors."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openslip.models.packing import copied
from openslip.models.tower import Tokens, Tower


class BagOfTokens(Tower):
    """A row per token; a text's feature is the mean of its distinct tokens' rows, weighted by `token_weight`.

    The order and the repetition of tokens do not matter. A text whose tokens all have weight 0 has the feature 0. A
    file of word vectors sets rows and weights; the objective `SuperClass` trains the rows, and sets the weights.

    Args:
        vocab_size: number of token ids.
        width: width of a row.

    Attributes:
        token_weight: weight of each token; 0 for tokens that do not count, such as the id of unknown words.
        is_known: whether each token has been learned; prediction refuses texts with words whose tokens have not been.
    """

    token_weight: Tensor
    is_known: Tensor

    def __init__(self, *, vocab_size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.token_embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)  # as CLIP's token embedding
        self.register_buffer("token_weight", torch.ones(vocab_size))
        self.register_buffer("is_known", torch.ones(vocab_size, dtype=torch.bool))

    def tokens(self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /) -> Tokens:
        return Tokens(self.token_embedding(ids), within(ids, lengths))

    def forward(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /
    ) -> Float[Tensor, "batch width"]:
        share = shares(self.token_weight[ids] * distinct(ids, lengths))
        return (share[:, :, None] * self.token_embedding(ids)).sum(dim=1)

    def known_ids(self) -> Bool[Tensor, " vocabulary"]:
        return self.is_known


def within(ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"]) -> Bool[Tensor, "batch length"]:
    """Return which ids are no padding."""
    mask = torch.arange(ids.shape[1]) < lengths.cpu()[:, None]
    return copied(ids.device, mask=mask)["mask"]


def distinct(ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"]) -> Bool[Tensor, "batch length"]:
    """Return which ids are no padding and occur in their row for the first time."""
    order = ids.masked_fill(~within(ids, lengths), -1).sort(dim=1, stable=True)
    first = torch.ones_like(order.values, dtype=torch.bool)
    first[:, 1:] = order.values[:, 1:] != order.values[:, :-1]
    return torch.zeros_like(first).scatter(1, order.indices, first & (order.values >= 0))


def shares(weights: Float[Tensor, "batch length"]) -> Float[Tensor, "batch length"]:
    """Divide each row by its sum; a row of zeros stays zero."""
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
