"""Synonyms of words: from a small list of this package, a list of your own, or the files of WordNet.

WordNet: Miller 1995, doi:10.1145/219717.219748; its files are described in its manual page wndb(5).
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from openslip.errors import UserError

Synonyms = dict[str, tuple[str, ...]]  # lower-case word to its synonyms; these may consist of several words

PACKAGED = Path(__file__).with_name("thesaurus.txt")
WORDNET = ("data.noun", "data.verb", "data.adj", "data.adv")
STOP_WORDS = Path(__file__).with_name("stop_words.txt")


@cache
def synonyms(path: str | None) -> Synonyms:
    """Read the synonyms of all words; each process reads a file once.

    Args:
        path: a folder with WordNet's files (`data.noun` and three more, such as Debian's /usr/share/wordnet), or a text
            file with one group of synonyms per line, separated by commas; None for the list of this package.

    Raises:
        UserError: the file or folder cannot be read, or has no synonyms.
    """
    place = PACKAGED if path is None else Path(path)
    # In WordNet, some of these are also rare nouns, such as "a", the vitamin.
    stop_words = {*STOP_WORDS.read_text().split()}
    found: dict[str, dict[str, None]] = {}
    try:
        for group in wordnet_groups(place) if place.is_dir() else listed_groups(place):
            for word in group:
                if " " not in word and word not in stop_words:
                    found.setdefault(word, {}).update(dict.fromkeys(other for other in group if other != word))
    except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
        raise UserError(
            f"thesaurus={path}: cannot be read ({error}); expected a folder with {', '.join(WORDNET)} (apt-get install "
            "wordnet-base, then /usr/share/wordnet), or a text file with groups such as `big, large, huge`"
        ) from error
    table = {word: tuple(others) for word, others in found.items() if others}
    if not table:
        raise UserError(f"thesaurus={path}: no line has two words; expected groups such as `big, large, huge`")
    return table


@cache
def thesaurus_fingerprint(path: str | None) -> str:
    """Return a hash of all words and their synonyms."""
    return hashlib.sha256(repr(sorted(synonyms(path).items())).encode()).hexdigest()[:16]


def listed_groups(file: Path) -> Iterator[list[str]]:
    """Yield the groups of a text file; lines that begin with # are comments."""
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            yield distinct(line.split(","))


def wordnet_groups(folder: Path) -> Iterator[list[str]]:
    """Yield WordNet's sets of synonyms, as offset, file number, kind, number of words in hex, and pairs word, id."""
    for name in WORDNET:
        with open(folder / name, encoding="utf-8") as file:
            for line in file:
                if not line.startswith("  "):  # the licence
                    fields = line.split()
                    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                    yield distinct(word.partition("(")[0].replace("_", " ") for word in words)  # without "(p)"


def distinct(words: Iterable[str]) -> list[str]:
    return [*dict.fromkeys(word for word in (word.strip().lower() for word in words) if word)]
