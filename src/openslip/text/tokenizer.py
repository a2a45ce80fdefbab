"""Contract: a tokenizer turns texts into rows of token ids, and tells how many ids of each row a tower reads."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from openslip.errors import UserError


class Tokenizer(ABC):
    """Base class of tokenizers; an instance must pickle, since it is copied to the loader's processes.

    Attributes:
        context_length: maximum number of ids per row.
        vocab_size: number of different ids; a text tower needs an embedding for each.
        special_ids: special ids by name: `start`, `end`, `pad`, `mask`, as far as the tokenizer has them.
    """

    context_length: int
    vocab_size: int
    special_ids: Mapping[str, int]

    @abstractmethod
    def encode(self, texts: Sequence[str], /) -> tuple[Int[Tensor, "texts length"], Int[Tensor, " texts"]]:
        """Encode each text as a row of ids, and return each row's length: the number of ids that a text tower reads.

        With `pooling: last`, the last of these ids is at the pooled position. Rows are padded with `pad`, or with 0 if
        there is no such id.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int], /) -> str:
        """Return the text of ids, for reports; special ids are skipped."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values, from which a checkpoint rebuilds the tokenizer."""

    def lengths(self, ids: Int[Tensor, "texts length"], /) -> Int[Tensor, " texts"]:
        """Return how many ids of each given row a text tower reads: the pooled position plus 1.

        `encode` returns these lengths with its ids. This method is for ids that come from elsewhere.

        Raises:
            UserError: the tokenizer does not define this method.
        """
        raise UserError(f"{type(self).__name__} cannot tell the lengths of given ids: define its method `lengths`")

    def num_tokens(self, text: str, /) -> int:
        """Count the ids of a text, special ids included, before truncation.

        This default calls `encode`; override it if `encode` truncates.
        """
        return int(self.encode([text])[1][0])
