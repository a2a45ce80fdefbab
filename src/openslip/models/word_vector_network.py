"""A text tower of word vectors and a small network: the mean of a text's vectors through a hidden layer."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from openslip.models.bag_of_tokens import BagOfTokens
from openslip.models.tower import Tokens, Tower


class WordVectorNetwork(Tower):
    """A linear layer and GELU on the mean of a text's distinct word vectors; `DualEncoder` may project the result.

    `towers.text.weights` sets the word vectors, and `towers.text.locked` freezes them; the layer is always trained. A
    text tower of locked word vectors knows words that no caption has, as in Frome et al. 2013, NeurIPS 26, 2121-2129.

    Args:
        vocab_size: number of token ids.
        vector_width: width of a word vector.
        width: width of the hidden layer, which is the tower's feature.
    """

    def __init__(self, *, vocab_size: int, vector_width: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.vectors = BagOfTokens(vocab_size=vocab_size, width=vector_width)
        self.hidden = nn.Linear(vector_width, width)

    @property
    def pretrained_part(self) -> Tower:
        return self.vectors

    def lock(self) -> None:
        self.vectors.lock()

    def tokens(self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /) -> Tokens:
        features, mask = self.vectors.tokens(ids, lengths)
        return Tokens(self.activated(features), mask)

    def forward(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], /
    ) -> Float[Tensor, "batch width"]:
        return self.activated(self.vectors(ids, lengths))

    def activated(self, vectors: Float[Tensor, "*rows vector"]) -> Float[Tensor, "*rows width"]:
        return nn.functional.gelu(self.hidden(vectors))

    def known_ids(self) -> Bool[Tensor, " vocabulary"]:
        return self.vectors.known_ids()
