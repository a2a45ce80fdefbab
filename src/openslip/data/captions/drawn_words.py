"""Caption view: a random share of the words of all captions of a sample, as of a title and a list of keywords."""

import hashlib
from typing import Any

import numpy as np
import torch

from openslip.data.captions.tokens import random_tokens, tokenize
from openslip.data.view import Columns, DecodedSample, View
from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer
from openslip.text.word_vectors import words_in

MOST_WORDS = 64  # of a sample; a list of more keywords is cut


class DrawnWords(View):
    """View that makes NAME [B, L], token ids of some words of each sample, and NAME_length [B], as `Caption` does.

    The distinct words of all captions are drawn without replacement, and keep their order. Each epoch draws others, so
    a model sees no caption twice, and learns what each of the words says about the image. Two more columns say which
    words a sample has, for `LiT` with `contained_caption=positive`: NAME_words [B, 64], a key of each distinct word and
    0 beyond the last, and NAME_drawn [B, 64], which of them were drawn.

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
        words = [*dict.fromkeys(word for caption in sample.captions for word in words_in(caption))][:MOST_WORDS]
        places = np.sort(rng.permutation(len(words))[: int(np.ceil(self.share * len(words)))])
        keys, is_drawn = np.zeros(MOST_WORDS, dtype=np.int64), np.zeros(MOST_WORDS, dtype=bool)
        keys[: len(words)] = [word_key(word) for word in words]
        is_drawn[places] = True
        return {"text": " ".join(words[place] for place in places), "words": keys, "drawn": is_drawn}

    def collate(self, drawn: list[dict[str, Any]]) -> Columns:
        texts = tokenize([each["text"] for each in drawn], self.tokenizer)
        return texts | {
            column: torch.from_numpy(np.stack([each[column] for each in drawn])) for column in ("words", "drawn")
        }

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        words = torch.randint(1, 10 * MOST_WORDS, (size, MOST_WORDS), generator=generator)
        texts = random_tokens(self.tokenizer, size, generator, varied=varied)
        return texts | {"words": words, "drawn": torch.arange(MOST_WORDS).expand(size, -1) < 2}


def word_key(word: str) -> int:
    """Return a positive 63-bit key of a word, the same in every process."""
    return max(1, int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest()) >> 1)
