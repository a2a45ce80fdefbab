"""CLIP's byte-pair encoding of lower-cased captions. Radford et al. 2021, arXiv:2103.00020, section 2.4."""

import gzip
import heapq
import html
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import ftfy
import numpy as np
import regex
import torch
from jaxtyping import Int
from torch import Tensor

from openslip.errors import UserError

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
# Neither ftfy nor html.unescape changes a text made of these alone.
_CLEAN_ASCII = regex.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*+")
_MAX_CACHED_WORDS = 1 << 16
_MAX_CACHED_LENGTH = 64


class _Vocabulary(NamedTuple):
    ids: dict[str, int]
    ranks: dict[tuple[str, str], int]
    byte_symbols: tuple[str, ...]


def text_lengths(text: Int[Tensor, "B L"]) -> Int[Tensor, " B"]:
    """Position of the pooled token, plus one: the end token is the largest id, so it is the first maximum."""
    return text.argmax(dim=-1) + 1


class Tokenizer:
    """Captions to padded rows of ids: start, byte pairs, end, zeros.

    Args:
        context_length: ids per row.
        truncation: what an over-long caption keeps: `keep_end` (its last id is the end token) or
            `drop_end` (no end token, as the published SLIP cuts; it is then pooled at position 0).
        special_text: a literal `<|endoftext|>` in a caption is ordinary text (`plain`) or the end token
            itself (`token`, as in the published SLIP).

    Raises:
        UserError: an argument has no meaning, or the vocabulary is not installed.
    """

    vocab_size = 49408
    start_token = 49406
    end_token = 49407

    def __init__(self, *, context_length: int, truncation: str, special_text: str) -> None:
        if context_length < 2:
            raise UserError(f"tokenizer.context_length={context_length}: expected at least 2 (start and end)")
        if truncation not in ("keep_end", "drop_end"):
            raise UserError(f"tokenizer.truncation={truncation!r}: expected keep_end or drop_end")
        if special_text not in ("plain", "token"):
            raise UserError(f"tokenizer.special_text={special_text!r}: expected plain or token")
        self.context_length = context_length
        self.truncation = truncation
        self.special_text = special_text
        specials = [] if special_text == "plain" else [regex.escape(token) for token in _SPECIALS]
        self._pattern = regex.compile("|".join([*specials, _WORDS]), regex.IGNORECASE)
        self._special_ids = (
            {} if special_text == "plain" else dict(zip(_SPECIALS, (self.start_token, self.end_token), strict=True))
        )
        self._vocabulary = _read_vocabulary()
        self._cache: dict[str, tuple[int, ...]] = {}

    def settings(self) -> dict[str, int | str]:
        """The constructor's arguments, for a checkpoint."""
        return {
            "context_length": self.context_length,
            "truncation": self.truncation,
            "special_text": self.special_text,
        }

    def __getstate__(self) -> dict[str, int | str]:
        return self.settings()

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def encode(self, caption: str) -> list[int]:
        """Ids of a caption, any number of them, without start and end."""
        ids: list[int] = []
        # No match of the pattern crosses white space, so a chunk's ids depend on nothing but the chunk.
        for chunk in _clean(caption).split():
            known = self._cache.get(chunk)
            ids.extend(self._encode_chunk(chunk) if known is None else known)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, for reports: lower-case, words and signs set apart; start, end and padding are left out."""
        symbols, byte_of = list(self._vocabulary.ids), {s: b for b, s in enumerate(self._vocabulary.byte_symbols)}
        text = "".join(symbols[i] for i in ids if 0 < i < self.start_token).replace("</w>", " ")
        return bytes(byte_of.get(symbol, ord(" ")) for symbol in text).decode("utf-8", "replace").strip()

    def __call__(self, captions: str | Sequence[str]) -> Int[Tensor, "B L"]:
        """One row per caption; a single string makes one row."""
        rows = [captions] if isinstance(captions, str) else captions
        text = np.zeros((len(rows), self.context_length), dtype=np.int64)
        for row, caption in zip(text, rows, strict=True):
            ids = [self.start_token, *self.encode(caption), self.end_token]
            if len(ids) > self.context_length:
                ids = ids[: self.context_length]
                if self.truncation == "keep_end":
                    ids[-1] = self.end_token
            row[: len(ids)] = ids
        return torch.from_numpy(text)

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        ids: list[int] = []
        for word in self._pattern.findall(chunk):
            special = self._special_ids.get(word)
            ids.extend(_merge(word, self._vocabulary) if special is None else [special])
        if len(chunk) <= _MAX_CACHED_LENGTH:
            if len(self._cache) >= _MAX_CACHED_WORDS:
                self._cache.clear()
            self._cache[chunk] = tuple(ids)
        return tuple(ids)


def _clean(caption: str) -> str:
    if not _CLEAN_ASCII.fullmatch(caption):
        caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return caption.lower()


def _merge(word: str, vocabulary: _Vocabulary) -> list[int]:
    """Byte pairs of one word: the pair with the lowest rank first, the leftmost of equals.

    A heap of pairs over a linked list, because the usual rescan after every merge takes seconds for a
    "word" of 10,000 letters. It gives the same pairs: a merge makes pairs of higher rank only.
    """
    symbols: list[str] = [vocabulary.byte_symbols[byte] for byte in word.encode("utf-8")]
    symbols[-1] += "</w>"
    end = len(symbols)
    following = list(range(1, end + 1))
    previous = list(range(-1, end - 1))
    ranks = vocabulary.ranks
    heap: list[tuple[int, int, str, str]] = []

    def push(left: int, right: int) -> None:
        if left >= 0 and right < end:
            rank = ranks.get((symbols[left], symbols[right]))
            if rank is not None:
                heapq.heappush(heap, (rank, left, symbols[left], symbols[right]))

    for position in range(end - 1):
        push(position, position + 1)
    while heap:
        _, left, first, second = heapq.heappop(heap)
        right = following[left]
        # A pair is stale once either half has been merged away; merged-away symbols are empty.
        if right >= end or symbols[left] != first or symbols[right] != second:
            continue
        symbols[left] = first + second
        symbols[right] = ""
        following[left] = following[right]
        if following[left] < end:
            previous[following[left]] = left
        push(previous[left], left)
        push(left, following[left])
    return [vocabulary.ids[symbol] for symbol in symbols if symbol]


@cache
def _read_vocabulary() -> _Vocabulary:
    # find_spec locates the package without running it: importing open_clip takes seconds.
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UserError("the vocabulary comes with open_clip_torch, which is missing: pip install open_clip_torch")
    file = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    try:
        lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError) as error:
        raise UserError(
            f"{file}: the vocabulary cannot be read ({error}): pip install --force-reinstall open_clip_torch"
        ) from error
    # Printable bytes stand for themselves, the others for characters from 256 on, as in the published file.
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    rest = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    alphabet = list(characters.values())
    num_merges = Tokenizer.vocab_size - 2 * len(alphabet) - len(_SPECIALS)
    merges = [(first, second) for first, second in (line.split() for line in lines[1 : num_merges + 1])]
    vocabulary = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges), *_SPECIALS]
    ids = {symbol: index for index, symbol in enumerate(vocabulary)}
    assert len(ids) == Tokenizer.vocab_size
    assert ids[_SPECIALS[1]] == Tokenizer.end_token
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    return _Vocabulary(ids, ranks, tuple(characters[byte] for byte in range(256)))
