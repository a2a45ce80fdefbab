"""Contract: a tokenizer turns texts into rows of token ids and says where each row is pooled."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor


class Tokenizer(ABC):
    """Texts to rows of token ids; it is copied to the loader's processes, so it must pickle.

    Attributes:
        context_length: ids per row, at most.
        vocab_size: number of ids; a text tower needs an embedding for each.
        special_ids: ids with a meaning, by name: `start`, `end`, `pad`, `mask`, those that there are.
    """

    context_length: int
    vocab_size: int
    special_ids: Mapping[str, int]

    @abstractmethod
    def encode(self, texts: Sequence[str], /) -> tuple[Int[Tensor, "texts length"], Int[Tensor, " texts"]]:
        """A row of ids per text, and per row the position that is pooled, plus one; later ids are `pad`, or 0."""

    @abstractmethod
    def decode(self, ids: Sequence[int], /) -> str:
        """The text of some ids, for reports; special ids are skipped."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, plain, from which a checkpoint rebuilds the tokenizer."""

    def num_tokens(self, text: str, /) -> int:
        """Ids of a text with its special ids and without truncation; override it where texts are truncated."""
        return int(self.encode([text])[1][0])
