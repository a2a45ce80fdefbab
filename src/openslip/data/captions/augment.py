"""Deletion, swapping and replacement of a caption's words. Wei and Zou 2019, arXiv:1901.11196 (EDA), section 2."""

import re

import numpy as np

from openslip.data.captions.thesaurus import synonyms, thesaurus_fingerprint

LETTERS = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")  # a word without punctuation around it


class RandomEdits:
    """Caption augmentation that deletes words, swaps pairs of words and replaces words by synonyms.

    A caption keeps at least one word.

    Args:
        delete: probability with which each word is deleted (0.1 in the paper).
        swap: number of swaps as a share of the number of words (0.1 in the paper).
        synonyms: number of words to replace as a share of the number of words, at least one word (0.1 in the paper);
            0 replaces none. Only words of the thesaurus are replaced.
        thesaurus: where synonyms come from, as in `openslip.data.captions.thesaurus.synonyms`.
    """

    def __init__(self, *, delete: float, swap: float, synonyms: float = 0.0, thesaurus: str | None = None) -> None:
        self.delete = delete
        self.swap = swap
        self.synonyms = synonyms
        self.thesaurus = thesaurus

    @property
    def fingerprint(self) -> str:
        """Hash of the synonyms; empty if none are used."""
        return thesaurus_fingerprint(self.thesaurus) if self.synonyms > 0 else ""

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        words = text.split()
        kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= self.delete]
        words = kept or words[:1]
        for _ in range(round(self.swap * len(words))):
            first, second = rng.integers(len(words), size=2)
            words[first], words[second] = words[second], words[first]
        if self.synonyms > 0:
            self.replace(words, rng)
        return " ".join(words)

    def replace(self, words: list[str], rng: np.random.Generator) -> None:
        """Replace some words by one of their synonyms; punctuation around a word stays."""
        table = synonyms(self.thesaurus)
        found = [(place, match) for place, word in enumerate(words) if (match := LETTERS.search(word))]
        known = [(place, match) for place, match in found if match.group().lower() in table]
        count = min(len(known), max(1, round(self.synonyms * len(words))))
        for choice in rng.permutation(len(known))[:count]:
            place, match = known[choice]
            others = table[match.group().lower()]
            word = words[place]
            words[place] = word[: match.start()] + others[rng.integers(len(others))] + word[match.end() :]
