"""Losses with equal samples as float64 loops over all pairs, and ours of raw features on this rank."""

import math
from typing import NamedTuple

import torch
from on_ranks import mean_over_ranks, rank_slice
from torch import Tensor

from openslip.objectives.contained_words import ContainedWords
from openslip.objectives.equal_info_nce import equal_info_nce
from openslip.objectives.equal_pairs import EqualPairs
from openslip.objectives.siglip import sigmoid_loss
from openslip.objectives.similarity import Features
from openslip.verify.splits import in_tiles

SCALE, BIAS = 12.0, -6.0


class Pairs(NamedTuple):
    """A batch of raw features, with a number for each sample's caption and class; class -1 is none."""

    image: Tensor
    text: Tensor
    captions: list[int]
    labels: list[int]


def batch_of_pairs(rows: int = 24, dim: int = 6) -> Pairs:
    """Related features, so that some positives lead; captions 0 and 1, and class 0, occur several times."""
    generator = torch.Generator().manual_seed(rows)
    image, noise = torch.randn(2, rows, dim, generator=generator, dtype=torch.float64)
    captions = [0 if place % 4 == 0 else 1 if place % 5 == 1 else 2 + place for place in range(rows)]
    labels = [0 if place % 6 == 0 else place if place % 3 else -1 for place in range(rows)]
    return Pairs(image, image + 1.5 * noise, captions, labels)


def role(batch: Pairs, i: int, j: int, same_caption: str, use_labels: bool = False) -> str:
    """Role of the pair of image i and text j, by the definitions."""
    if i == j:
        return "positive"
    same_class = use_labels and batch.labels[i] == batch.labels[j] != -1
    return same_caption if batch.captions[i] == batch.captions[j] or same_class else "negative"


def logit(batch: Pairs, i: int, j: int, bias: float) -> float:
    image, text = batch.image[i], batch.text[j]
    return SCALE * float(image @ text) / math.sqrt(float(image @ image) * float(text @ text)) + bias


def naive_sigmoid_loss(batch: Pairs, same_caption: str) -> float:
    total, rows = 0.0, len(batch.image)
    for i in range(rows):
        for j in range(rows):
            sign = {"positive": 1, "negative": -1, "ignore": 0}[role(batch, i, j, same_caption)]
            if sign:
                total += math.log1p(math.exp(-sign * logit(batch, i, j, BIAS)))
    return total / rows


def naive_info_nce(batch: Pairs, same_caption: str, use_labels: bool = False) -> float:
    total, rows = 0.0, len(batch.image)
    for swapped in (False, True):
        for i in range(rows):
            logits, positives = [], []
            for j in range(rows):
                of_pair = role(batch, i, j, same_caption, use_labels)
                value = logit(batch, j, i, 0.0) if swapped else logit(batch, i, j, 0.0)
                if of_pair != "ignore":
                    logits.append(value)
                if of_pair == "positive":
                    positives.append(value)
            normaliser = math.log(sum(map(math.exp, logits)))
            total -= sum(value - normaliser for value in positives) / len(positives)
    return total / (2 * rows)


def keys(captions: list[int]) -> Tensor:
    """Two numbers for each caption, as `caption_keys` returns them; only both together tell captions apart."""
    return torch.tensor([[caption % 2, caption // 2] for caption in captions])


def pair_loss(
    loss: str,
    batch: Pairs,
    same_caption: str,
    tile: int | None,
    gather_with_grad: bool = True,
    use_labels: bool = False,
) -> tuple[Tensor, ...]:
    """The loss, gradients of this rank's features, of the scale and of the bias, and the accuracy; means over ranks.

    Args:
        loss: `sigmoid` or `info_nce`.
        batch: the global batch.
        same_caption: role of pairs of equal samples.
        tile: rows and columns of a tile; None for one tile.
        gather_with_grad: whether the keys of InfoNCE get gradients.
        use_labels: whether samples of the same class are equal.
    """
    image, text = (rank_slice(x).clone().requires_grad_() for x in (batch.image, batch.text))
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (SCALE, BIAS))
    labels = rank_slice(torch.tensor(batch.labels)) if use_labels else None
    equal = EqualPairs(rank_slice(keys(batch.captions)), labels, role=same_caption)
    images, texts = (Features(x, gather_with_grad=gather_with_grad) for x in (image, text))
    with in_tiles(tile):
        if loss == "sigmoid":
            value, accuracy = sigmoid_loss(images, texts, scale, bias, None if same_caption == "negative" else equal)
        else:
            value, accuracy = equal_info_nce(images, texts, scale, equal)
        value.backward()
    gradients = [x.grad for x in (image, text)]
    of_scale = mean_over_ranks(torch.zeros_like(scale) if scale.grad is None else scale.grad)
    of_bias = mean_over_ranks(torch.zeros_like(bias) if bias.grad is None else bias.grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    mean = mean_over_ranks(value.detach().clone())
    return mean, gradients[0], gradients[1], of_scale, of_bias, mean_over_ranks(accuracy)


WORDS = 7  # places for the words of a sample


def words_of_pairs(rows: int) -> tuple[Tensor, Tensor]:
    """Keys of each sample's words, up to five of few different ones, and which of them are in its caption."""
    generator = torch.Generator().manual_seed(rows)
    words = torch.zeros(rows, WORDS, dtype=torch.int64)
    for place in range(rows):
        own = torch.randperm(8, generator=generator)[: place % 6]
        words[place, : len(own)] = (1 << 60) + own  # keys that float32 cannot tell apart
    drawn = torch.zeros(rows, WORDS, dtype=torch.bool)
    drawn[:, 0] = words[:, 0] > 0
    drawn[::3, 1] = words[::3, 1] > 0
    return words, drawn


def contained_loss(batch: Pairs, tile: int | None) -> tuple[Tensor, ...]:
    """InfoNCE with captions of contained words as positives, gradients of this rank's features and of the scale."""
    image, text = (rank_slice(x).clone().requires_grad_() for x in (batch.image, batch.text))
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    contained = ContainedWords(*map(rank_slice, words_of_pairs(len(batch.image))))
    images, texts = (Features(x, gather_with_grad=True) for x in (image, text))
    with in_tiles(tile):
        value, _ = equal_info_nce(images, texts, scale, contained)
        value.backward()
    assert image.grad is not None
    assert text.grad is not None
    assert scale.grad is not None
    return mean_over_ranks(value.detach().clone()), image.grad, text.grad, mean_over_ranks(scale.grad)
