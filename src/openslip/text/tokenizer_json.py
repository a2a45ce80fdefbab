"""Tokenizers of the `tokenizers` library, described by one JSON file, `tokenizer.json`.

The library is in the extra `hf`; it is imported when such a tokenizer is built.
"""

import html
import json
import re
import string
from collections.abc import Sequence
from typing import Any

import ftfy
import torch
from jaxtyping import Int
from torch import Tensor

from openslip.errors import MissingPackage, UserError, first_line
from openslip.text.bare_ids import BareIds
from openslip.text.tokenizer import Tokenizer

SIDES = ("right", "left")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The pattern of CLIP's words in transformers' CLIPTokenizer.
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class TokenizerJson(Tokenizer):
    """A tokenizer that a `tokenizer.json` describes; the whole JSON is in its settings, so a checkpoint holds it.

    Rows have a fixed length. A text that is too long is truncated as the JSON's post-processor does, which keeps the
    end token.

    Args:
        definition: content of `tokenizer.json`.
        context_length: ids per row.
        pad: id that fills the rows.
        pooled: position that the model pools, as in `BareIds`.
        end: the id that ends a text, for `pooled: first`.
        clean: cleaning of a text before it is tokenized: a key of `CLEAN`.
        pad_side: `right` or `left`.

    Raises:
        MissingPackage: the library `tokenizers` is not installed.
        UserError: an argument is invalid, or the library cannot read the definition.
    """

    def __init__(
        self,
        *,
        definition: str,
        context_length: int,
        pad: int,
        pooled: str,
        end: int | None = None,
        clean: str = "none",
        pad_side: str = "right",
    ) -> None:
        for name, value, known in (("clean", clean, CLEAN), ("pad_side", pad_side, SIDES)):
            if value not in known:
                raise UserError(f"tokenizer.{name}={value!r}: expected one of {', '.join(known)}")
        self.definition = definition
        self.context_length = context_length
        self.pad = pad
        self.clean = clean
        self.pad_side = pad_side
        self._tokenizer = parse(definition)
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._ids = BareIds(context_length=context_length, vocab_size=self.vocab_size, pooled=pooled, end=end)
        self.special_ids = {"pad": pad, **self._ids.special_ids}
        added = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if not added < context_length or not 0 <= pad < self.vocab_size:
            raise UserError(
                f"tokenizer.context_length={context_length}, tokenizer.pad={pad}: expected more ids than the {added} "
                f"special ones of each text, and an id below {self.vocab_size}"
            )
        self._tokenizer.no_padding()  # a saved tokenizer may pad and truncate to other lengths
        self._tokenizer.enable_truncation(context_length)

    def encode(self, texts: Sequence[str], /) -> tuple[Int[Tensor, "texts length"], Int[Tensor, " texts"]]:
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch([CLEAN[self.clean](text) for text in texts])]
        fill = [[self.pad] * (self.context_length - len(row)) for row in rows]
        padded = [row + pads if self.pad_side == "right" else pads + row for row, pads in zip(rows, fill, strict=True)]
        ids = torch.tensor(padded, dtype=torch.int64).view(len(rows), self.context_length)
        return ids, self.lengths(ids)

    def lengths(self, ids: Int[Tensor, "texts length"], /) -> Int[Tensor, " texts"]:
        return self._ids.lengths(ids)

    def num_tokens(self, text: str, /) -> int:
        self._tokenizer.no_truncation()
        try:
            return len(self._tokenizer.encode(CLEAN[self.clean](text)).ids)
        finally:
            self._tokenizer.enable_truncation(self.context_length)

    def decode(self, ids: Sequence[int], /) -> str:
        text = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
        return text.replace("</w>", " ").strip()

    def settings(self) -> dict[str, Any]:
        return {
            "definition": self.definition,
            "context_length": self.context_length,
            "pad": self.pad,
            "pooled": self._ids.pooled,
            "end": self._ids.end,
            "clean": self.clean,
            "pad_side": self.pad_side,
        }

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None if the vocabulary does not have it."""
        return self._tokenizer.token_to_id(token)

    def __getstate__(self) -> dict[str, Any]:
        return self.settings()

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)


def parse(definition: str) -> Any:
    """Read the content of a `tokenizer.json` with the library `tokenizers`.

    Raises:
        MissingPackage: the library is not installed.
        UserError: the library cannot read it.
    """
    tokenizers = library()
    try:
        return tokenizers.Tokenizer.from_str(definition)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library is written in Rust, and its panics are no Exceptions
        raise UserError(f"its tokenizer.json cannot be read ({first_line(error)[:200]})") from error


def clip_definition(vocabulary: dict[str, int], merges: Sequence[str]) -> str:
    """Return the `tokenizer.json` of CLIP's byte-pair encoding, from its older files `vocab.json` and `merges.txt`.

    The normalisation and the words are those of transformers' CLIPTokenizer: unlike OpenAI's, it neither repairs texts
    with ftfy nor decodes HTML entities, and it composes characters (NFC).

    Args:
        vocabulary: id of each symbol, special tokens included.
        merges: pairs of symbols, separated by a space, by rank.
    """
    ends = {token: vocabulary.get(token) for token in ("<|startoftext|>", "<|endoftext|>")}
    if None in ends.values():
        raise UserError(f"its vocab.json lacks {' or '.join(ends)}: not a vocabulary of CLIP")
    (start, start_id), (end, end_id) = ends.items()
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [{"id": number, "content": token, **special} for token, number in ends.items()],
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "NFC"},
                    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                    {"type": "Lowercase"},
                ],
            },
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": CLIP_WORDS}, "behavior": "Removed", "invert": True},
                    byte_level,
                ],
            },
            "post_processor": {
                "type": "RobertaProcessing",
                "sep": [end, end_id],
                "cls": [start, start_id],
                "trim_offsets": False,
                "add_prefix_space": False,
            },
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "unk_token": end,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "</w>",
                "vocab": vocabulary,
                "merges": list(merges),
            },
        }
    )


def siglip(text: str) -> str:
    """Clean a text as transformers' SiglipTokenizer does: lower case, no punctuation, single spaces."""
    return re.sub(r"\s+", " ", text.lower().translate(NO_PUNCTUATION)).strip()


def whitespace(text: str) -> str:
    """Clean a text as open_clip does by default: repaired by ftfy, HTML entities decoded twice, single spaces."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def canonicalize(text: str) -> str:
    """Clean a text as open_clip's `canonicalize` does, for SigLIP: as `whitespace`, lower case, no punctuation.

    An underscore becomes a space.
    """
    return " ".join(whitespace(text).replace("_", " ").translate(NO_PUNCTUATION).lower().split())


CLEAN = {
    "none": str,
    "siglip": siglip,
    "whitespace": whitespace,
    "whitespace_lower": lambda text: whitespace(text).lower(),
    "canonicalize": canonicalize,
}


def library() -> Any:
    """Import the library `tokenizers`.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import tokenizers  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise MissingPackage('this vocabulary needs tokenizers; pip install "openslip[hf]"') from error
    return tokenizers
