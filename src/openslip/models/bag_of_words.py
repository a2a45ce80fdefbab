"""A linear text tower: a caption's feature is the sum of the vectors of its tokens, in whatever order they stand."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from openslip.models.bag_of_tokens import within
from openslip.models.tower import Tokens, Tower


class BagOfWords(Tower):
    """Encodes captions by a linear map of their token counts.

    Args:
        vocab_size: number of token ids.
        width: width of a token's vector and of the caption's feature.
    """

    def __init__(self, *, vocab_size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.token_embedding = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def tokens(self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /) -> Tokens:
        return Tokens(self.token_embedding(ids), within(ids, lengths))

    def forward(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /
    ) -> Float[Tensor, "batch width"]:
        features, mask = self.tokens(ids, lengths)
        return (features * mask[..., None]).sum(dim=1)
