"""Word vectors in GloVe's text format: a word and its numbers per line. Pennington et al. 2014, EMNLP, 1532-1543.

A first line with only two whole numbers, the sizes, is allowed, as word2vec writes it.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from openslip.durable import durable, needed
from openslip.errors import UserError
from openslip.regular_file import regular_file

WORD = re.compile(r"\w+(?:'\w+)*")
SIZES = re.compile(r"\d+ \d+\s*")
COMMAND = "openslip data vectors SHARDS --output FILE makes one from captions"
DOWNLOAD = "openslip data get glove_6b_50d fetches GloVe's"


class WordVectors(NamedTuple):
    """Words and their vectors, one row per word."""

    words: list[str]
    vectors: Float[np.ndarray, "words width"]


def words_in(text: str) -> list[str]:
    """Split a text into lower-cased words; punctuation is dropped."""
    return WORD.findall(text.lower())


def is_word_vectors(path: Path) -> bool:
    """Tell whether the first line of a file is that of a file of word vectors; never raise an error."""
    try:
        with regular_file(path).open("rb") as file:
            lines = [file.readline(1 << 16).decode() for _ in range(2)]
        first = lines[1] if SIZES.fullmatch(lines[0]) else lines[0]
        word, *numbers = first.split()
        return len(numbers) >= 2 and bool(word) and all(np.isfinite([float(number) for number in numbers]))
    except (OSError, ValueError, UserError):
        return False


def read_words(path: str | Path) -> list[str]:
    """Return the words of a file of word vectors in the order of its lines; the numbers are not parsed.

    Raises:
        UserError: as for `read_vectors`.
    """
    words = [word for word, _ in rows(path)]
    if len(set(words)) < len(words):
        twice = Counter(words).most_common(1)[0][0]
        raise UserError(f"{path}: the word {twice[:60]!r} has several vectors: expected one line per word")
    return words


def read_vectors(path: str | Path) -> WordVectors:
    """Read words and vectors, as float32.

    Raises:
        UserError: the file cannot be read or is no file of word vectors, a line has another number of numbers than the
            first or one that is not finite, or a word occurs twice.
    """
    words, lines = read_words(path), []
    for word, numbers in rows(path):
        try:
            lines.append(np.array([float(number) for number in numbers.split()], dtype=np.float32))
        except ValueError as error:
            raise UserError(f"{path}: the line of {word[:60]!r} holds no numbers ({error})") from error
        if len(lines[-1]) != len(lines[0]) or not np.isfinite(lines[-1]).all():
            raise UserError(
                f"{path}: the line of {word[:60]!r} has {len(lines[-1])} numbers: expected {len(lines[0])} finite "
                "ones, as in the first line, after a word without spaces"
            )
    return WordVectors(words, np.stack(lines))


def rows(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield the word of each line, and the text of its numbers."""
    if not is_word_vectors(Path(path)):
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file; {DOWNLOAD}; {COMMAND}")
        raise UserError(f"{path}: is no file of word vectors; expected lines such as `cat 0.1 -0.2`; {COMMAND}")
    try:
        with Path(path).open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file):
                if number or not SIZES.fullmatch(line):
                    word, _, numbers = line.partition(" ")
                    yield word, numbers
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): expected UTF-8 text") from error


def write_vectors(path: Path, given: WordVectors) -> None:
    """Write a file of word vectors, complete or not at all; seven digits keep a float32 to a relative 1e-6."""
    with needed(path, refusal=UserError, advice="or name another file"), durable(path) as file:
        for word, vector in zip(given.words, given.vectors, strict=True):
            file.write(" ".join([word, *(f"{number:.7g}" for number in vector)]).encode() + b"\n")
