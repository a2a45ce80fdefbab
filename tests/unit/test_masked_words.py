"""The masked-token loss against a loop over captions, on one rank and on several."""

import math

import pytest
import torch
from declip_on_ranks import masked_loss_on_rank
from ranks import Ranks
from torch import Tensor, nn

from openslip.objectives.masked_words import masked_word_losses, unmasked

LABELS = torch.tensor([[-100, 3, -100, 1], [-100] * 4, [-100, -100, 6, -100]])


def parts() -> tuple[Tensor, nn.Linear]:
    torch.manual_seed(0)
    return torch.randn(3, 4, 5, dtype=torch.float64), nn.Linear(5, 8).double()


def test_sums_and_counts_of_captions_are_those_of_a_loop():
    words, vocabulary = parts()
    sums, counts = masked_word_losses(words, LABELS, vocabulary)
    for caption in range(3):
        total = 0.0
        for place in range(4):
            label = int(LABELS[caption, place])
            if label != -100:
                logits = vocabulary(words[caption, place]).detach().tolist()
                total += math.log(sum(map(math.exp, logits))) - logits[label]
        assert sums[caption].item() == pytest.approx(total, rel=1e-12)
    assert counts.tolist() == [2, 0, 1]


def test_captions_without_masked_tokens_give_a_loss_and_a_gradient_of_zero():
    words, vocabulary = parts()
    sums, counts = masked_word_losses(words.requires_grad_(), torch.full((3, 4), -100), vocabulary)
    (sums.sum() * 2).backward()
    assert sums.tolist() == [0, 0, 0]
    assert counts.tolist() == [0, 0, 0]
    assert words.grad is not None
    assert not words.grad.any()


def test_masks_are_undone_by_the_labels():
    ids = torch.tensor([[9, 8, 2, 5], [1, 2, 3, 4], [7, 7, 8, 7]])
    assert unmasked(ids, LABELS).tolist() == [[9, 3, 2, 1], [1, 2, 3, 4], [7, 7, 6, 7]]


@pytest.mark.parametrize(("of_each_rank", "mean"), [(False, (1 + 2 + 3 + 10) / 4), (True, ((1 + 2 + 3) / 3 + 10) / 2)])
def test_ranks_weigh_tokens_equally_or_as_published(two_ranks: Ranks, of_each_rank: bool, mean: float):
    assert sum(two_ranks(masked_loss_on_rank, of_each_rank)) / 2 == pytest.approx(mean, rel=1e-12)
