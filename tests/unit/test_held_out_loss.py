"""The held-out loss against a loop, on one process and on two."""

import math

import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder, image_encoder
from geometry_models import held_out
from retrieval_models import Captioned

from openslip.config.build import build_evaluations
from openslip.errors import UserError
from openslip.evaluation.evaluation import with_unit


def naive(count: int, size: int, scale: float) -> tuple[float, float, float]:
    """Loss and both accuracies of consecutive batches, each pair with the first caption; the rest is left out."""
    model, source = bundle(dual_encoder()), Captioned(count)
    cosines = model.similarity([source[i].image for i in range(count)], [source[i].captions[0] for i in range(count)])
    rows = cosines.tolist()
    losses, to_text, to_image = [], 0, 0
    for start in range(0, count - size + 1, size):
        batch = range(start, start + size)
        for own in batch:
            of_image = [rows[own][other] for other in batch]
            of_text = [rows[other][own] for other in batch]
            for candidates in (of_image, of_text):
                total = sum(math.exp(scale * (cosine - rows[own][own])) for cosine in candidates)
                losses.append(math.log(total))
            to_text += max(of_image) == rows[own][own]
            to_image += max(of_text) == rows[own][own]
    used = count // size * size
    return sum(losses) / len(losses), 100 * to_text / used, 100 * to_image / used


@pytest.mark.parametrize(("count", "size"), [(13, 4), (12, 12), (7, 2)])
def test_loss_and_accuracies_equal_a_loop(count: int, size: int):
    metrics = held_out(Captioned(count), size).run(bundle(dual_encoder()))
    loss, to_text, to_image = naive(count, size, math.exp(2.6593))
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert (metrics["image_to_text_acc"], metrics["text_to_image_acc"]) == (
        pytest.approx(to_text),
        pytest.approx(to_image),
    )
    assert metrics["num_pairs"] == count // size * size


def test_the_temperature_is_the_models_own():
    model = dual_encoder()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(50))
    loss = held_out(Captioned(13)).run(bundle(model))["loss"]
    assert loss == pytest.approx(naive(13, 4, 50.0)[0], rel=1e-4)


def test_features_that_are_all_equal_have_the_loss_of_a_guess():
    model = dual_encoder()
    with torch.no_grad():
        assert model.image_projection is not None
        model.image_projection.zero_()
    assert held_out(Captioned(8), 8).run(bundle(model))["loss"] == pytest.approx(math.log(8))


@pytest.mark.parametrize("size", [1, 6])
def test_a_batch_without_negatives_or_larger_than_the_source_is_refused(size: int):
    with pytest.raises(UserError, match=f"loss_batch_size={size}: expected 2 to 5, the number of samples"):
        held_out(Captioned(5), size)


def test_the_size_of_a_batch_is_refused_by_its_key():
    options = {"_target_": "openslip.evaluation.held_out_loss.HeldOutLoss", "title": "t", "loss_batch_size": 9}
    source = {"_target_": "retrieval_models.Captioned", "count": 5}
    with pytest.raises(UserError, match=r"evaluation\.mine\.loss_batch_size=9: expected 2 to 5"):
        build_evaluations({"mine": {**options, "source": source, "batch_size": 2, "num_workers": 0}})


def test_what_has_no_loss_is_refused():
    with pytest.raises(UserError, match="'picture0' has no caption: the held-out loss needs one for every image"):
        held_out(Pictures(4)).run(bundle(dual_encoder()))
    with pytest.raises(UserError, match="ImageEncoder has neither"):
        held_out(Captioned(4)).run(bundle(image_encoder()))


def test_headline_and_units():
    metrics = {"loss": 1.23456, "image_to_text_acc": 62.5, "text_to_image_acc": 50.0, "num_pairs": 8.0}
    assert held_out(Captioned(4)).headline(metrics) == "mine: 1.2346 in batches of 4, image to text 62.5 %"
    assert [with_unit(*item) for item in metrics.items()] == ["1.235", "62.50 %", "50.00 %", "8"]
