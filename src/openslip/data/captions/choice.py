"""Caption view: one of a sample's captions, drawn uniformly, as token ids."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from openslip.data.captions.tokens import random_tokens, tokenize
from openslip.data.view import Columns, DecodedSample, View
from openslip.text.tokenizer import Tokenizer

Augment = Callable[[str, np.random.Generator], str]


class Caption(View):
    """View that makes NAME [B, L], token ids as wide as the batch's longest caption, and NAME_length [B].

    NAME_length is the number of ids that a text tower reads; with `pooling: last`, it is the pooled position + 1.

    Published SLIP draws title or description in the same way (datasets.py). Two views of a sample draw independently.

    Args:
        tokenizer: converts text to token ids.
        augment: changes the text before it is tokenized, such as `RandomEdits`; None keeps the text.
    """

    needs_caption = True
    on_cpu = ("length", "truncated")
    statistics = ("truncated",)
    cost_varies = True

    def __init__(self, *, tokenizer: Tokenizer, augment: Augment | None = None) -> None:
        self.tokenizer = tokenizer
        self.augment = augment
        self.padding = {"": tokenizer.special_ids.get("pad", 0)}

    @property
    def fingerprint(self) -> str:
        return augment_fingerprint(self.augment)

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        return {"text": choose(sample.captions, self.augment, rng)}

    def collate(self, drawn: list[dict[str, Any]]) -> Columns:
        return tokenize([each["text"] for each in drawn], self.tokenizer)

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        return random_tokens(self.tokenizer, size, generator, varied=varied)


def augment_fingerprint(augment: Augment | None) -> str:
    """Return the hash of the files that an augmentation reads, its attribute `fingerprint`; empty if it has none."""
    return getattr(augment, "fingerprint", "")


def choose(captions: tuple[str, ...], augment: Augment | None, rng: np.random.Generator) -> str:
    """Draw one of the captions uniformly, and augment it."""
    text = captions[rng.integers(len(captions)) if len(captions) > 1 else 0]
    return text if augment is None else augment(text, rng)
