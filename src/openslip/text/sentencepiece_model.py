"""SigLIP's vocabulary as a file of the library sentencepiece, `spiece.model`, tokenized as in transformers.

The library is in the extra `hf`; it is imported when such a tokenizer is built.
"""

import base64
import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from openslip.errors import MissingPackage, UserError, first_line
from openslip.text.bare_ids import BareIds
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import siglip

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # sentencepiece's mark of a word's beginning
END, UNKNOWN = "</s>", "<unk>"


class SentencePieceModel(Tokenizer):
    """SigLIP's tokenizer as in transformers: cleaned texts, the end token, and rows of fixed length.

    The whole file is in its settings, so a checkpoint holds it. A literal `</s>` or `<unk>` in a text is this token.

    Args:
        model: content of `spiece.model`, in base 64.
        context_length: ids per row, all of which the model reads: the last position is pooled.

    Raises:
        MissingPackage: the library sentencepiece is not installed.
        UserError: the context is too short, or the library cannot read the model.
    """

    def __init__(self, *, model: str, context_length: int) -> None:
        if context_length < 2:
            raise UserError(f"tokenizer.context_length={context_length}: expected at least 2")
        try:
            import sentencepiece  # noqa: PLC0415  # an extra
        except ImportError as error:
            raise MissingPackage('this vocabulary needs sentencepiece; pip install "openslip[hf]"') from error
        self.model = model
        self.context_length = context_length
        self._pieces: Any = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(base64.b64decode(model, validate=True))
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"its spiece.model cannot be read ({first_line(error)[:200]})") from error
        self.vocab_size = self._pieces.get_piece_size()
        self._ids = BareIds(context_length=context_length, vocab_size=self.vocab_size, pooled="last")
        self._special = {token: self._pieces.piece_to_id(token) for token in (END, UNKNOWN)}
        self._end = self._special[END]
        self.special_ids = {"end": self._end, "pad": self._end}
        # A word in the middle of a text is encoded differently from one at its beginning.
        self._before = len(self._pieces.encode(UNKNOWN))

    def encode(self, texts: Sequence[str], /) -> tuple[Int[Tensor, "texts length"], Int[Tensor, " texts"]]:
        rows = [self._with_end(self.tokenize(text)[: self.context_length - 1]) for text in texts]
        padded = [row + [self._end] * (self.context_length - len(row)) for row in rows]
        ids = torch.tensor(padded, dtype=torch.int64).view(len(rows), self.context_length)
        return ids, self.lengths(ids)

    def lengths(self, ids: Int[Tensor, "texts length"], /) -> Int[Tensor, " texts"]:
        return self._ids.lengths(ids)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text without end token and without truncation."""
        lower = re.sub(f"({END}|{UNKNOWN})|(.+?)", lambda m: m[1] or m[2].lower(), SPACE + text.replace(SPACE, " "))
        parts = re.split(f"\\s*({END}|{UNKNOWN})\\s*", lower)
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self._special[part])
            elif part:
                cleaned = siglip(part)
                pieces = self._pieces.encode(UNKNOWN + cleaned)
                ids += pieces[self._before :]
        if len(parts) > 1 and ids[:1] == [self._pieces.piece_to_id(SPACE)] and ids[1] in self._special.values():
            ids = ids[1:]
        return ids

    def num_tokens(self, text: str, /) -> int:
        return len(self._with_end(self.tokenize(text)))

    def decode(self, ids: Sequence[int], /) -> str:
        special = self._special.values()
        return self._pieces.decode([int(i) for i in ids if int(i) not in special])

    def settings(self) -> dict[str, Any]:
        return {"model": self.model, "context_length": self.context_length}

    def _with_end(self, ids: list[int]) -> list[int]:
        return ids if ids[-1:] == [self._end] else [*ids, self._end]

    def __getstate__(self) -> dict[str, Any]:
        return self.settings()

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)
