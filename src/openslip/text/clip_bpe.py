"""CLIP's byte-pair encoding of lower-cased captions. Radford et al. 2021, arXiv:2103.00020, section 2.4."""

import gzip
import heapq
import html
import importlib.util
from array import array
from collections.abc import Sequence
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import ftfy
import numpy as np
import regex
import torch
from jaxtyping import Int
from torch import Tensor

from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# Names of the start and end tokens that count as these tokens in a text; `plain` has none.
_SPECIALS = {
    "plain": (),
    "token": ("<|startoftext|>", "<|endoftext|>"),
    "open_clip": ("<start_of_text>", "<end_of_text>"),
}
_NUM_SYMBOLS = 49406  # bytes and merges; the special ids follow
# ftfy changes nothing but line ends in a text of only these characters.
_PLAIN_ASCII = regex.compile(r"[\t\n\r\x20-\x7e]*+")
_MAX_CACHED = 1 << 17  # chunks and words in the cache, about 20 MB
_MAX_CACHED_LENGTH = 64  # characters of a chunk
_ID_BYTES = 2  # a packed id is an unsigned short
_MERGED_AWAY = -1


class _Vocabulary(NamedTuple):
    """CLIP's symbols in id order: 256 bytes, the same bytes at the end of a word, then the merges by rank."""

    symbols: tuple[str, ...]
    byte_ids: bytes  # id of each byte, as a table for bytes.translate
    merges: dict[tuple[int, int], int]  # ids of a pair -> id of the merged symbol; lower ids are merged first
    words: dict[str, bytes]  # ASCII words that are one symbol -> packed id of the symbol


class ClipBpe(Tokenizer):
    """CLIP's byte-pair tokenizer; a row holds the start token, ids of the lower-cased text, the end token and zeros.

    Args:
        context_length: ids per row.
        truncation: how a too long text is truncated: `keep_end` (the last id is the end token) or `drop_end` (without
            an end token, as in published SLIP; CLIP pools the largest id, which is then the start token at position 0).
        special_text: whether a literal `<|endoftext|>` in a text is ordinary text (`plain`) or the end token itself
            (`token`, as in OpenAI's CLIP and published SLIP); with `open_clip`, a literal `<end_of_text>` is the end
            token, as there.
        mask_token: whether to add `<|mask|>` before the start and end tokens, whose ids it shifts by one, as in DeCLIP.

    Raises:
        UserError: an argument is invalid; or a text is encoded, and the vocabulary is not installed.
    """

    def __init__(self, *, context_length: int, truncation: str, special_text: str, mask_token: bool = False) -> None:
        if context_length < 2:
            raise UserError(f"tokenizer.context_length={context_length}: expected at least 2 (start and end)")
        if truncation not in ("keep_end", "drop_end"):
            raise UserError(f"tokenizer.truncation={truncation!r}: expected keep_end or drop_end")
        if special_text not in _SPECIALS:
            raise UserError(f"tokenizer.special_text={special_text!r}: expected one of {', '.join(_SPECIALS)}")
        self.context_length = context_length
        self.truncation = truncation
        self.special_text = special_text
        self.mask_token = mask_token
        start = _NUM_SYMBOLS + mask_token
        self.special_ids = {"pad": 0, "start": start, "end": start + 1} | ({"mask": _NUM_SYMBOLS} if mask_token else {})
        self.vocab_size = start + 2
        self._start, self._end = _pack([start]), _pack([start + 1])

    @cached_property
    def _cache(self) -> "_Cache":
        # Not in the constructor: reading the vocabulary takes longer than loading a model whose text is not encoded.
        specials = dict(zip(_SPECIALS[self.special_text], (self._start, self._end), strict=False))
        return _Cache(_read_vocabulary(), specials)

    def settings(self) -> dict[str, Any]:
        return {
            "context_length": self.context_length,
            "truncation": self.truncation,
            "special_text": self.special_text,
            "mask_token": self.mask_token,
        }

    def __getstate__(self) -> dict[str, Any]:
        return self.settings()

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text without start and end token and without truncation."""
        return array("H", self._pack_text(_clean(text).split())).tolist()

    def num_tokens(self, text: str, /) -> int:
        return len(self.tokenize(text)) + 2

    def decode(self, ids: Sequence[int], /) -> str:
        """Return the lower-case text of ids, with spaces between words and punctuation."""
        symbols, byte_of = _read_vocabulary().symbols, {s: b for b, s in enumerate(_byte_symbols())}
        text = "".join(symbols[i] for i in ids if 0 < i < _NUM_SYMBOLS).replace("</w>", " ")
        return bytes(byte_of.get(symbol, ord(" ")) for symbol in text).decode("utf-8", "replace").strip()

    def encode(self, texts: Sequence[str], /) -> tuple[Int[Tensor, "texts length"], Int[Tensor, " texts"]]:
        width = _ID_BYTES * self.context_length
        kept = width - 2 * _ID_BYTES if self.truncation == "keep_end" else width
        rows: list[bytes] = []
        for text in texts:
            # Every chunk gives at least one id, so all text after this many chunks would be truncated anyway.
            chunks = _clean(text).split(None, self.context_length - 1)
            ids = self._pack_text(chunks[: self.context_length - 1])
            rows.append((self._start + ids[:kept] + self._end)[:width].ljust(width, b"\0"))
        packed = np.frombuffer(b"".join(rows), np.uint16).reshape(len(rows), self.context_length)
        ids = torch.from_numpy(packed.astype(np.int64))
        return ids, self.lengths(ids)

    def lengths(self, ids: Int[Tensor, "texts length"], /) -> Int[Tensor, " texts"]:
        return ids.argmax(dim=1) + 1  # the end token has the largest id

    def _pack_text(self, chunks: list[str]) -> bytes:
        return b"".join(map(self._cache.__getitem__, chunks))


class _Cache(dict[str, bytes]):
    """Map chunks of a cleaned caption, split at white space, to packed ids, which can be joined without a loop.

    No match of the pattern crosses white space, so a chunk's ids depend only on the chunk. Nothing is evicted when the
    cache is full, because frequent chunks are cached early.
    """

    def __init__(self, vocabulary: _Vocabulary, specials: dict[str, bytes]) -> None:
        super().__init__(vocabulary.words | specials)
        self.vocabulary = vocabulary
        self.pattern = regex.compile("|".join([*map(regex.escape, specials), _WORDS]), regex.IGNORECASE)

    def __missing__(self, chunk: str) -> bytes:
        words = self.pattern.findall(chunk)
        ids = _pack(_merge(chunk, self.vocabulary)) if words == [chunk] else b"".join(map(self.__getitem__, words))
        if len(chunk) <= _MAX_CACHED_LENGTH and len(self) < _MAX_CACHED:
            self[chunk] = ids
        return ids


def _pack(ids: list[int]) -> bytes:
    return array("H", ids).tobytes()


def _clean(caption: str) -> str:
    plain = caption.isascii() and (caption.isprintable() or _PLAIN_ASCII.fullmatch(caption) is not None)
    # ftfy only decodes HTML entities that end with a semicolon; html.unescape also decodes others.
    if not plain or ("&" in caption and ";" in caption):
        caption = ftfy.fix_text(caption)
    return html.unescape(html.unescape(caption)).lower()


def _merge(word: str, vocabulary: _Vocabulary) -> list[int]:
    """Merge the byte pairs of one word: the pair with the lowest rank first, the leftmost among equals.

    The pairs are in a heap over a linked list, because the usual rescan after every merge takes seconds for a
    "word" of 10,000 letters. The result is the same, because a merge only creates pairs of higher rank.
    """
    ids = list(word.encode("utf-8").translate(vocabulary.byte_ids))
    ids[-1] += 256
    end = len(ids)
    following = list(range(1, end + 1))
    previous = list(range(-1, end - 1))
    merges = vocabulary.merges
    heap = [(merges[pair], place, *pair) for place, pair in enumerate(pairwise(ids)) if pair in merges]
    heapq.heapify(heap)
    while heap:
        joined, left, first, second = heapq.heappop(heap)
        right = following[left]
        # A pair is stale once either half has been merged away.
        if right >= end or ids[left] != first or ids[right] != second:
            continue
        ids[left], ids[right] = joined, _MERGED_AWAY
        following[left] = following[right]
        if following[left] < end:
            previous[following[left]] = left
        for near, far in ((previous[left], left), (left, following[left])):
            if near >= 0 and far < end and (ids[near], ids[far]) in merges:
                heapq.heappush(heap, (merges[ids[near], ids[far]], near, ids[near], ids[far]))
    return [i for i in ids if i != _MERGED_AWAY]


def symbols_and_merges() -> tuple[tuple[str, ...], list[str]]:
    """Return CLIP's symbols in the order of their ids, without special tokens, and its merges by rank.

    A merge is two symbols, separated by a space.
    """
    vocabulary = _read_vocabulary()
    symbols = vocabulary.symbols
    return symbols, [f"{symbols[first]} {symbols[second]}" for first, second in vocabulary.merges]


@cache
def _byte_symbols() -> tuple[str, ...]:
    """Return a symbol for each byte: printable bytes are themselves, the others are characters from 256 on.

    This is the encoding of the published file.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    rest = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(rest)) for byte in range(256))


@cache
def _read_vocabulary() -> _Vocabulary:
    # find_spec locates the package without importing it: importing open_clip takes seconds.
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
    alphabet = sorted(_byte_symbols())  # printable bytes first
    num_merges = _NUM_SYMBOLS - 2 * len(alphabet)
    pairs = [(first, second) for first, second in (line.split() for line in lines[1 : num_merges + 1])]
    symbols = (*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in pairs))
    ids = {symbol: index for index, symbol in enumerate(symbols)}
    assert len(ids) == _NUM_SYMBOLS
    # Merging the letters of a symbol gives that symbol (a test checks it), but only ASCII letters represent themselves.
    endings = ((symbol.removesuffix("</w>"), i) for symbol, i in ids.items() if symbol.endswith("</w>"))
    return _Vocabulary(
        symbols=symbols,
        byte_ids=bytes(ids[symbol] for symbol in _byte_symbols()),
        merges={(ids[first], ids[second]): ids[first + second] for first, second in pairs},
        words={word: _pack([i]) for word, i in endings if word.isascii()},
    )
