"""A tokenizer whose tokens are whole words, for text towers that read word vectors."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer
from openslip.text.word_vectors import read_words, words_in


class Words(Tokenizer):
    """Lower-cased words as ids; a word outside the vocabulary, and a text without words, becomes the id `unknown`.

    `Bundle.encode_text` refuses texts with unknown words; captions in training may have some.

    Args:
        context_length: largest number of words of a text; further words are dropped.
        words: the vocabulary in the order of the ids, one word per line, as a checkpoint stores it.
        vectors: file of word vectors whose words are the vocabulary; exactly one of `words` and `vectors` is given.

    Raises:
        UserError: both or neither are given, the vocabulary has a word twice, or the file cannot be read.
    """

    special_ids = {"pad": 0, "unknown": 1}  # noqa: RUF012

    def __init__(self, *, context_length: int, words: str | None = None, vectors: str | None = None) -> None:
        if (words is None) == (vectors is None):
            raise UserError(f"vectors={vectors}: expected a file of word vectors, or `words` from a checkpoint")
        self.context_length = context_length
        self.words = read_words(vectors) if vectors is not None else str(words).split("\n")
        self.ids = {word: place for place, word in enumerate(self.words, start=len(self.special_ids))}
        if len(self.ids) < len(self.words):
            raise UserError("words: a word occurs twice in the vocabulary; expected each once")
        self.vocab_size = len(self.special_ids) + len(self.words)

    def encode(self, texts: Sequence[str], /) -> tuple[Int[Tensor, "texts length"], Int[Tensor, " texts"]]:
        unknown = self.special_ids["unknown"]
        rows = [[self.ids.get(word, unknown) for word in words_in(text)] or [unknown] for text in texts]
        rows = [row[: self.context_length] for row in rows]
        ids = torch.zeros(len(rows), self.context_length, dtype=torch.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
        return ids, torch.tensor([len(row) for row in rows])

    def decode(self, ids: Sequence[int], /) -> str:
        first = len(self.special_ids)
        return " ".join(self.words[place - first] for place in ids if place >= first)

    def lengths(self, ids: Int[Tensor, "texts length"], /) -> Int[Tensor, " texts"]:
        return (ids != self.special_ids["pad"]).sum(dim=1)

    def num_tokens(self, text: str, /) -> int:
        return max(1, len(words_in(text)))

    def settings(self) -> dict[str, Any]:
        return {"context_length": self.context_length, "words": "\n".join(self.words)}
