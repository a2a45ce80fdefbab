"""Caption view: a random share of the words of all captions of a sample, as of a title and a list of keywords."""

from typing import Any

import numpy as np
import torch

from openslip.data.captions.tokens import random_tokens, tokenize
from openslip.data.view import Columns, DecodedSample, View
from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer
from openslip.text.word_vectors import words_in


class DrawnWords(View):
    """View that makes NAME [B, L], token ids of some words of each sample, and NAME_length [B], as `Caption` does.

    The distinct words of all captions are drawn without replacement, and keep their order. Each epoch draws others, so
    a model sees no caption twice, and learns what each of the words says about the image.

    Args:
        tokenizer: converts text to token ids.
        share: share of the distinct words that is drawn, rounded up.

    Raises:
        UserError: `share` is not above 0 and at most 1.
    """

    needs_caption = True
    needs_image = False
    on_cpu = ("length", "truncated")
    statistics = ("truncated",)
    cost_varies = True

    def __init__(self, *, tokenizer: Tokenizer, share: float) -> None:
        if not 0 < share <= 1:
            raise UserError(f"share={share}: expected a share of the words, above 0 and at most 1")
        self.tokenizer = tokenizer
        self.share = share
        self.padding = {"": tokenizer.special_ids.get("pad", 0)}

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        words = [*dict.fromkeys(word for caption in sample.captions for word in words_in(caption))]
        places = np.sort(rng.permutation(len(words))[: int(np.ceil(self.share * len(words)))])
        return {"text": " ".join(words[place] for place in places)}

    def collate(self, drawn: list[dict[str, Any]]) -> Columns:
        return tokenize([each["text"] for each in drawn], self.tokenizer)

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        return random_tokens(self.tokenizer, size, generator, varied=varied)
