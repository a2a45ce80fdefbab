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
        one_kind: whether a caption gets only one kind of edit, drawn for each caption, as in DeCLIP's published code:
            deletions, one swap, or a synonym for one word wherever it occurs. Of `swap` and `synonyms` then counts only
            whether they are 0; such a kind is never drawn. docs/NUMERICS.md#eda
    """

    def __init__(
        self, *, delete: float, swap: float, synonyms: float = 0.0, thesaurus: str | None = None, one_kind: bool = False
    ) -> None:
        self.delete = delete
        self.swap = swap
        self.synonyms = synonyms
        self.thesaurus = thesaurus
        self.one_kind = one_kind

    @property
    def fingerprint(self) -> str:
        """Hash of the synonyms; empty if none are used."""
        return thesaurus_fingerprint(self.thesaurus) if self.synonyms > 0 else ""

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        words = text.split()
        if self.one_kind and words:
            kinds = ((self.delete, self.without_some), (self.swap, swapped), (self.synonyms, self.renamed))
            drawn = [kind for share, kind in kinds if share > 0]
            return " ".join(drawn[rng.integers(len(drawn))](words, rng)) if drawn else text
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

    def without_some(self, words: list[str], rng: np.random.Generator) -> list[str]:
        """Delete words; if none would be left, one of them stays."""
        kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= self.delete]
        return kept or [words[rng.integers(len(words))]]

    def renamed(self, words: list[str], rng: np.random.Generator) -> list[str]:
        """Replace one of the words that have synonyms, everywhere in the caption, by the same synonym."""
        table = synonyms(self.thesaurus)
        if not (known := [*dict.fromkeys(word for word in words if word.lower() in table)]):
            return words
        chosen = known[rng.integers(len(known))]
        others = table[chosen.lower()]
        synonym = others[rng.integers(len(others))]
        return [synonym if word == chosen else word for word in words]


def swapped(words: list[str], rng: np.random.Generator) -> list[str]:
    """Exchange two words; as published, the second place is drawn three times at most until it differs."""
    first, *seconds = rng.integers(len(words), size=4).tolist()
    second = next((place for place in seconds if place != first), first)
    words[first], words[second] = words[second], words[first]
    return words
