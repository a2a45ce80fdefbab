"""LiT's loss in which a caption is a positive of every image that has its words, against sets and autograd."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pair_losses import SCALE, Pairs, batch_of_pairs, contained_loss, words_of_pairs
from ranks import Ranks
from small_models import small_batch, small_model
from torch import Tensor

from openslip.errors import UserError
from openslip.objectives.contained_words import ContainedWords
from openslip.objectives.lit import LiT

CLIPS = {"gather_with_grad": True, "max_logit_scale": 4.6052}


def by_sets(rows: int) -> Tensor:
    """Which captions (columns) have only words of which images (rows)."""
    words, drawn = words_of_pairs(rows)
    owned = [set(row[row > 0].tolist()) for row in words]
    captions = [set(row[mask].tolist()) for row, mask in zip(words, drawn, strict=True)]
    contained = torch.tensor([[bool(caption) and caption <= own for caption in captions] for own in owned])
    return contained | torch.eye(rows, dtype=torch.bool)


def plain_loss(batch: Pairs) -> tuple[Tensor, ...]:
    positive = by_sets(len(batch.image)).double()
    image, text = (x.clone().requires_grad_() for x in (batch.image, batch.text))
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    of_images, of_texts = positive / positive.sum(1, keepdim=True), positive.T / positive.T.sum(1, keepdim=True)
    value = (F.cross_entropy(logits, of_images) + F.cross_entropy(logits.T, of_texts)) / 2
    value.backward()
    return value.detach(), *(x.grad for x in (image, text, scale) if x.grad is not None)


def test_pairs_are_positive_if_the_image_has_all_words_of_the_caption():
    expected = by_sets(24)
    assert expected.diagonal().all()
    assert not expected.equal(expected.T)
    contained = ContainedWords(*words_of_pairs(24))
    assert contained.roles(slice(0, 24), slice(0, 24)).positive.equal(expected)
    assert contained.roles(slice(3, 9), slice(10, 24)).positive.equal(expected[3:9, 10:24])


@pytest.mark.parametrize("tile", [None, 5])
def test_the_loss_and_its_gradients_are_those_of_soft_targets(two_ranks: Ranks, tile: int | None):
    batch = batch_of_pairs()
    expected = plain_loss(batch)
    torch.testing.assert_close(contained_loss(batch, tile), expected, rtol=1e-10, atol=1e-12)
    found = two_ranks(contained_loss, batch, tile)
    features = [torch.cat([rank[part] for rank in found]) / 2 for part in (1, 2)]
    for rank in found:
        torch.testing.assert_close((rank[0], *features, rank[3]), expected, rtol=1e-10, atol=1e-12)


def test_the_objective_reads_the_words_of_its_view():
    model: Any = small_model("clip")[0]
    batch = {**small_batch(6), "image_features": torch.randn(6, model.image_tower.width, dtype=torch.float64)}
    words = torch.arange(1, 7)[:, None].repeat(1, 3)
    drawn = torch.tensor([[True, False, False]]).expand(6, -1)
    lit = LiT(**CLIPS, same_caption="negative", contained_caption="positive")
    plain = LiT(**CLIPS, same_caption="negative", contained_caption="negative")

    def loss(objective: LiT, **columns: Tensor) -> float:
        features = objective.encode(model, {**batch, **columns})
        return objective.terms(model, features)["loss"].item()

    different = loss(lit, text_words=words, text_drawn=drawn)
    assert different == pytest.approx(loss(plain), rel=1e-12)
    assert loss(lit, text_words=words * 0 + 1, text_drawn=drawn) != pytest.approx(different, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("negative", "ignore"), "contained_caption=ignore: expected negative or positive"),
        (("ignore", "positive"), "same_caption=ignore: with contained_caption=positive, equal captions are positives"),
    ],
)
def test_other_roles_are_refused(values: tuple[str, str], message: str):
    with pytest.raises(UserError, match=message):
        LiT(**CLIPS, same_caption=values[0], contained_caption=values[1])
