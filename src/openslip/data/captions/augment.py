"""Random deletion and swapping of a caption's words. Wei and Zou 2019, arXiv:1901.11196 (EDA), section 2."""

import numpy as np


class RandomEdits:
    """Caption augmentation that deletes words and swaps pairs of words; a caption keeps at least one word.

    Args:
        delete: probability with which each word is deleted (0.1 in the paper).
        swap: number of swaps as a share of the number of words (0.1 in the paper).
    """

    def __init__(self, *, delete: float, swap: float) -> None:
        self.delete = delete
        self.swap = swap

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        words = text.split()
        kept = [word for word, draw in zip(words, rng.random(len(words)), strict=True) if draw >= self.delete]
        words = kept or words[:1]
        for _ in range(round(self.swap * len(words))):
            first, second = rng.integers(len(words), size=2)
            words[first], words[second] = words[second], words[first]
        return " ".join(words)
