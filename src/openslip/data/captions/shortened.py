"""Shortened caption view: only some of a caption's tokens. Li et al. 2023, arXiv:2305.07017 (CLIPA).

Section 3 compares the ways; its syntax mask, which needs a tagger of parts of speech, is not among ours.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from openslip.data.captions.choice import Augment, augment_fingerprint, choose
from openslip.data.captions.tokens import random_tokens, tokenize
from openslip.data.view import Columns, DecodedSample, View
from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer

WAYS = ("truncate", "random", "block")


class ShortenedCaption(View):
    """View NAME and NAME_length as in `Caption`, with at most `tokens` tokens per caption, in their order.

    The tower and its position embeddings keep their context length, so that a later run can train with whole captions.
    The column `truncated` tells which captions were shortened.

    Args:
        tokenizer: converts text to token ids; it must have the tokens `start` and `end`, which are always kept.
        tokens: largest number of tokens, start and end included.
        way: which tokens stay: the first (`truncate`), some at random (`random`), or consecutive ones from a random
            place on (`block`).
        augment: as in `Caption`.
    """

    needs_caption = True
    on_cpu = ("length", "truncated")
    statistics = ("truncated",)
    cost_varies = True

    def __init__(self, *, tokenizer: Tokenizer, tokens: int, way: str, augment: Augment | None = None) -> None:
        if way not in WAYS:
            raise UserError(f"way={way}: expected one of {', '.join(WAYS)}")
        if not 3 <= tokens <= tokenizer.context_length:
            raise UserError(
                f"tokens={tokens}: expected 3 (start, one token and end) to {tokenizer.context_length} "
                "(tokenizer.context_length)"
            )
        if missing := {"start", "end"} - tokenizer.special_ids.keys():
            raise UserError(f"{type(tokenizer).__name__} has no {' and no '.join(sorted(missing))} token to keep")
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.way = way
        self.augment = augment
        self.padding = {"": tokenizer.special_ids.get("pad", 0)}

    @property
    def fingerprint(self) -> str:
        return augment_fingerprint(self.augment)

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        text = choose(sample.captions, self.augment, rng)
        return {"text": text, "draws": rng.random(self.tokenizer.context_length, np.float32)}

    def collate(self, drawn: list[dict[str, Any]]) -> Columns:
        columns = tokenize([each["text"] for each in drawn], self.tokenizer)
        return self.shorten(columns, torch.from_numpy(np.stack([each["draws"] for each in drawn])))

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        columns = random_tokens(self.tokenizer, size, generator, varied=varied)
        draws = torch.rand(size, self.tokenizer.context_length, generator=generator)
        columns = self.shorten(columns, draws)
        return {suffix: column for suffix, column in columns.items() if suffix not in self.statistics}

    def shorten(self, columns: Columns, draws: Float[Tensor, "batch context"]) -> Columns:
        """Keep `tokens` tokens of each caption.

        Args:
            columns: token ids and lengths of the captions.
            draws: numbers in 0..1: with `random` one for each token, of which the smallest stay; with `block` the first
                one says where the block begins.
        """
        ids, lengths = columns[""], columns["length"]
        order = torch.arange(ids.shape[1]).expand_as(ids)
        inner = (order > 0) & (order < lengths[:, None] - 1)
        if self.way == "random":
            rank = torch.where(inner, draws[:, : ids.shape[1]], 2.0).argsort(dim=1).argsort(dim=1)
        else:
            room = (lengths - self.tokens).clamp(min=0)  # number of places where a block may begin, less one
            start = (draws[:, 0] * (room + 1)).long().clamp(max=room) if self.way == "block" else torch.zeros_like(room)
            rank = torch.where(order > start[:, None], order - 1 - start[:, None], ids.shape[1])
        is_end = order == lengths[:, None] - 1
        kept = (inner & (rank < self.tokens - 2)) | (order == 0) | is_end
        shortened = lengths.clamp(max=self.tokens)
        return {
            "": moved_left(ids, kept, int(shortened.max()), self.padding[""]),
            "length": shortened,
            "truncated": lengths > self.tokens,
        }


def moved_left(ids: Int[Tensor, "batch length"], kept: Tensor, width: int, padding: int) -> Int[Tensor, "batch width"]:
    """Return the kept ids of each row without gaps, padded on the right."""
    places = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :width]
    filled = torch.arange(width) < kept.sum(dim=1, keepdim=True)
    return torch.where(filled, ids.gather(1, places), padding)
