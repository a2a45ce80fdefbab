"""Masked caption view: token ids with masked tokens, and labels. Devlin et al. 2018, arXiv:1810.04805, section 3.1."""

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

NO_LABEL = -100  # torch's cross-entropy ignores this label


class MaskedCaption(View):
    """View NAME and NAME_length as in `Caption`, and NAME_labels [B, L]: the ids of masked tokens, -100 elsewhere.

    Special tokens are never masked. Which tokens are masked depends only on seed, epoch, sample and view. The labels
    stay on the CPU, where the number of masked tokens is read without synchronisation.

    Args:
        tokenizer: converts text to token ids; it must have a `mask` token.
        probability: share of the tokens that get a label (0.15 in the paper).
        mask_share: share of the labelled tokens that become the mask token (0.8 in the paper).
        random_share: share of the labelled tokens that become a random token (0.1 in the paper); the others stay.
        augment: as in `Caption`.
    """

    needs_caption = True
    on_cpu = ("length", "labels", "truncated")
    statistics = ("truncated",)
    cost_varies = True

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        probability: float,
        mask_share: float,
        random_share: float,
        augment: Augment | None = None,
    ) -> None:
        if "mask" not in tokenizer.special_ids:
            raise UserError(f"{type(tokenizer).__name__} has no mask token: set tokenizer.mask_token=true")
        if not (0 < probability <= 1 and mask_share >= 0 and random_share >= 0 and mask_share + random_share <= 1):
            raise UserError(
                f"masked caption probability={probability} mask_share={mask_share} random_share={random_share}: "
                "expected shares of 0 to 1, the last two at most 1 together, e.g. 0.15, 0.8 and 0.1"
            )
        self.tokenizer = tokenizer
        self.probability = probability
        self.mask_share = mask_share
        self.random_share = random_share
        self.augment = augment
        self.padding = {"": tokenizer.special_ids.get("pad", 0), "labels": NO_LABEL}

    @property
    def fingerprint(self) -> str:
        return augment_fingerprint(self.augment)

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        text = choose(sample.captions, self.augment, rng)
        return {"text": text, "draws": rng.random((3, self.tokenizer.context_length), np.float32)}

    def collate(self, drawn: list[dict[str, Any]]) -> Columns:
        columns = tokenize([each["text"] for each in drawn], self.tokenizer)
        draws = torch.from_numpy(np.stack([each["draws"] for each in drawn]))
        return columns | self.mask(columns[""], columns["length"], draws)

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        columns = random_tokens(self.tokenizer, size, generator, varied=varied)
        draws = torch.rand(size, 3, self.tokenizer.context_length, generator=generator)
        return columns | self.mask(columns[""], columns["length"], draws)

    def mask(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"], draws: Float[Tensor, "batch 3 context"]
    ) -> Columns:
        """Mask token ids and make their labels.

        Args:
            ids: token ids of the captions.
            lengths: number of tokens of each caption.
            draws: per token three numbers in 0..1: whether it is masked, how, and with which random id.
        """
        chosen, kind, other = draws[:, :, : ids.shape[1]].unbind(1)
        special = torch.tensor(list(self.tokenizer.special_ids.values()))
        place = torch.arange(ids.shape[1])
        masked = (chosen < self.probability) & (place < lengths[:, None]) & ~torch.isin(ids, special)
        random_ids = (other * self.tokenizer.vocab_size).long().clamp(max=self.tokenizer.vocab_size - 1)
        replaced = torch.where(kind < self.mask_share, self.tokenizer.special_ids["mask"], random_ids)
        changes = masked & (kind < self.mask_share + self.random_share)
        return {"": torch.where(changes, replaced, ids), "labels": torch.where(masked, ids, NO_LABEL)}
