"""Captions with a hard negative: two words of the same class exchanged. Yuksekgonul et al. 2022, arXiv:2210.01936.

The paper's NegCLIP finds nouns, adjectives, verbs and adverbs with a tagger of parts of speech. Ours knows the words of
`word_classes.txt`, finer classes such as colours and animals, so that the exchanged caption is still a sentence.
"""

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openslip.data.captions.augment import LETTERS
from openslip.data.captions.choice import Augment, augment_fingerprint, choose
from openslip.data.captions.tokens import random_tokens, tokenize
from openslip.data.view import Columns, DecodedSample, View
from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer

PACKAGED = Path(__file__).with_name("word_classes.txt")
Place = tuple[int, int, str]  # where a word begins and ends in the caption, and the word in lower case


class HardCaption(View):
    """View NAME and NAME_length as in `Caption`, and the same columns NAME_hard, NAME_hard_length for a hard negative.

    NAME_has_hard [B] is false for a caption in which no word is known; its hard negative is the caption itself.

    Args:
        tokenizer: converts text to token ids.
        augment: as in `Caption`; the hard negative is made from the augmented caption.
        word_classes: text file with one class of words per line, separated by commas, with words of nearly the same
            meaning separated by slashes; None for the list of this package.
    """

    needs_caption = True
    on_cpu = ("length", "hard_length", "truncated")
    statistics = ("truncated",)
    cost_varies = True

    def __init__(
        self, *, tokenizer: Tokenizer, augment: Augment | None = None, word_classes: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.augment = augment
        self.word_classes = word_classes
        read_classes(word_classes)  # a file that cannot be read is an error before any worker starts
        pad = tokenizer.special_ids.get("pad", 0)
        self.padding = {"": pad, "hard": pad}

    @property
    def fingerprint(self) -> str:
        return read_classes(self.word_classes).fingerprint + augment_fingerprint(self.augment)

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        text = choose(sample.captions, self.augment, rng)
        return {"text": text, "hard": hard_negative(text, read_classes(self.word_classes), rng)}

    def collate(self, drawn: list[dict[str, Any]]) -> Columns:
        captions = tokenize([each["text"] for each in drawn], self.tokenizer)
        hard = tokenize([each["text"] if each["hard"] is None else each["hard"] for each in drawn], self.tokenizer)
        return self.columns(captions, hard, torch.tensor([each["hard"] is not None for each in drawn]))

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        captions, hard = (random_tokens(self.tokenizer, size, generator, varied=varied) for _ in range(2))
        return self.columns(captions, hard, torch.ones(size, dtype=torch.bool))

    @staticmethod
    def columns(captions: Columns, hard: Columns, has_hard: Tensor) -> Columns:
        return {**captions, "hard": hard[""], "hard_length": hard["length"], "has_hard": has_hard}


class WordClasses:
    """Classes of words of which one cannot stand for another.

    Attributes:
        group: for each word, its class and its number in the class; words of nearly the same meaning have one number.
        words: the first word of each number, by class.
        fingerprint: hash of the lines.
    """

    def __init__(self, lines: list[str]) -> None:
        self.group: dict[str, list[tuple[int, int]]] = {}
        self.words: list[list[str]] = []
        self.fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        for line in lines:
            entries = [[word.strip().lower() for word in entry.split("/")] for entry in line.split(",")]
            entries = [words for words in ([word for word in entry if word] for entry in entries) if words]
            if len(entries) < 2:  # a word without another of its class has no hard caption
                continue
            for number, entry in enumerate(entries):
                for word in entry:
                    self.group.setdefault(word, []).append((len(self.words), number))
            self.words.append([entry[0] for entry in entries])

    def others(self, word: str) -> list[str]:
        """Return the words of the word's classes with another meaning."""
        return [
            other
            for place, own in self.group.get(word, [])
            for number, other in enumerate(self.words[place])
            if number != own
        ]

    def exchangeable(self, first: str, second: str) -> bool:
        """Whether two words are of one class and differ in meaning."""
        numbers: Mapping[int, int] = dict(self.group.get(first, []))
        return any(place in numbers and numbers[place] != number for place, number in self.group.get(second, []))


@cache
def read_classes(path: str | None) -> WordClasses:
    """Read a file of word classes; each process reads it once."""
    try:
        lines = (PACKAGED if path is None else Path(path)).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"word_classes={path}: cannot be read ({error}); expected a text file with lines such as `red, green, blue`"
        ) from error
    classes = WordClasses([line for line in lines if line.strip() and not line.startswith("#")])
    if not classes.words:
        raise UserError(f"word_classes={path}: no line has two words; expected lines such as `red, green, blue`")
    return classes


def hard_negative(text: str, classes: WordClasses, rng: np.random.Generator) -> str | None:
    """Exchange two words of one class, or put another word of its class in place of one; None if no word is known."""
    known: list[Place] = [
        (match.start(), match.end(), match.group().lower())
        for match in re.finditer(LETTERS, text)
        if match.group().lower() in classes.group
    ]
    pairs = [
        (first, second)
        for place, first in enumerate(known)
        for second in known[place + 1 :]
        if classes.exchangeable(first[2], second[2])
    ]
    if pairs:
        (begin, end, word), (other_begin, other_end, other) = pairs[rng.integers(len(pairs))]
        return text[:begin] + other + text[end:other_begin] + word + text[other_end:]
    if not known:
        return None
    begin, end, word = known[rng.integers(len(known))]
    others = classes.others(word)
    return text[:begin] + others[rng.integers(len(others))] + text[end:]
