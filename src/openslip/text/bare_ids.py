"""A tokenizer without a vocabulary, for models whose file holds none: it reads ids, and cannot make them of texts."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from jaxtyping import Int
from torch import Tensor

from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer

POOLED = ("largest", "first", "last")


class BareIds(Tokenizer):
    """The settings of an unknown vocabulary; `lengths` works, and `encode` and `decode` raise an error.

    Args:
        context_length: ids per row.
        vocab_size: number of different ids.
        pooled: position that the model pools: that of the `largest` id, the `first` position of the id `end`, or the
            `last` position of the row, padding included.
        end: the id that ends a text, for `pooled: first`; a row without it is pooled at position 0, as transformers
            does.

    Raises:
        UserError: `pooled` is unknown, or `first` has no `end`.
    """

    def __init__(self, *, context_length: int, vocab_size: int, pooled: str, end: int | None = None) -> None:
        if pooled not in POOLED:
            raise UserError(f"tokenizer.pooled={pooled!r}: expected one of {', '.join(POOLED)}")
        if (pooled == "first") != (end is not None):
            raise UserError(f"tokenizer.pooled={pooled!r} with end={end}: `first` needs the id `end`, others have none")
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.pooled = pooled
        self.end = end
        self.special_ids = {} if end is None else {"end": end}

    def lengths(self, ids: Int[Tensor, "texts length"], /) -> Int[Tensor, " texts"]:
        if self.pooled == "last":
            return torch.full((len(ids),), ids.shape[1])
        return (ids if self.end is None else (ids == self.end).int()).argmax(dim=1) + 1

    def encode(self, texts: Sequence[str], /) -> NoReturn:
        raise UserError(f"texts cannot be encoded: {self.why()}")

    def decode(self, ids: Sequence[int], /) -> NoReturn:
        raise UserError(f"ids cannot be decoded: {self.why()}")

    def why(self) -> str:
        """Explain what is missing, and what can be used instead."""
        return (
            f"the model's vocabulary of {self.vocab_size:,} ids is not CLIP's and not in its file; "
            "give ids to model.encode_text(ids, tokenizer.lengths(ids))"
        )

    def settings(self) -> dict[str, Any]:
        return {
            "context_length": self.context_length,
            "vocab_size": self.vocab_size,
            "pooled": self.pooled,
            "end": self.end,
        }
