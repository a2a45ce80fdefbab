"""The caption of a sample: one of those that it has, drawn uniformly, as token ids."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from openslip.data.captions.tokens import random_tokens, tokenize
from openslip.data.view import Columns, DecodedSample, View
from openslip.text.tokenizer import Tokenizer

Augment = Callable[[str, np.random.Generator], str]


class Caption(View):
    """Makes NAME, ids [B, L] cut to the longest caption of the batch, and NAME_length [B], the pooled position + 1.

    Published SLIP draws title or description alike (datasets.py); two views of a sample draw independently.

    Args:
        tokenizer: text to ids.
        augment: changes the text before it is tokenized, such as `RandomEdits`; None: nothing does.
    """

    needs_caption = True
    on_cpu = ("length", "truncated")
    statistics = ("truncated",)
    cost_varies = True

    def __init__(self, *, tokenizer: Tokenizer, augment: Augment | None = None) -> None:
        self.tokenizer = tokenizer
        self.augment = augment
        self.padding = {"": tokenizer.special_ids.get("pad", 0)}

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        return {"text": choose(sample.captions, self.augment, rng)}

    def collate(self, drawn: list[dict[str, Any]]) -> Columns:
        return tokenize([each["text"] for each in drawn], self.tokenizer)

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        return random_tokens(self.tokenizer, size, generator, varied=varied)


def choose(captions: tuple[str, ...], augment: Augment | None, rng: np.random.Generator) -> str:
    """One of the captions, drawn uniformly, and augmented."""
    text = captions[rng.integers(len(captions)) if len(captions) > 1 else 0]
    return text if augment is None else augment(text, rng)
