"""NegCLIP against the paper's formula as a float64 loop, in tiles and on ranks."""

import math

import pytest
import torch
from on_ranks import hard_loss_and_gradients
from ranks import Ranks
from small_models import small_batch, small_model
from torch import Tensor

SCALE = 14.3


def features(rows: int = 8, dim: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, captions, hard captions, and which captions have a hard one."""
    generator = torch.Generator().manual_seed(rows)
    image, text, hard = torch.randn(3, rows, dim, generator=generator, dtype=torch.float64)
    return image, text + image, hard + text, torch.arange(rows) % 3 != 1


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def naive_loss(image: Tensor, text: Tensor, hard: Tensor, has_hard: Tensor) -> float:
    total = 0.0
    for i in range(len(image)):
        columns = [*text, *(each for each, there in zip(hard, has_hard, strict=True) if there)]
        row = [math.exp(SCALE * cosine(image[i], column)) for column in columns]
        column = [math.exp(SCALE * cosine(each, text[i])) for each in image]
        total -= math.log(row[i] / sum(row)) + math.log(column[i] / sum(column))
    return total / (2 * len(image))


@pytest.mark.parametrize("tile", [None, 3])
def test_the_loss_is_the_papers_with_hard_captions_as_columns_only(tile: int | None):
    image, text, hard, has_hard = features()
    loss, *_ = hard_loss_and_gradients(image, text, hard, has_hard, True, tile)
    assert loss.item() == pytest.approx(naive_loss(image, text, hard, has_hard), rel=1e-12)
    everywhere = torch.ones_like(has_hard)
    assert loss.item() != pytest.approx(naive_loss(image, text, hard, everywhere), rel=1e-4)
    assert loss.item() != pytest.approx(naive_loss(image, text, hard, ~everywhere), rel=1e-4)


def test_a_caption_without_a_hard_one_has_no_column():
    image, text, hard, has_hard = features()
    *_, to_hard, _, _ = hard_loss_and_gradients(image, text, hard, has_hard, True)
    assert not to_hard[~has_hard].any()
    assert to_hard[has_hard].abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("gather_with_grad", [True, False])
def test_tiles_and_ranks_equal_one_process(two_ranks: Ranks, gather_with_grad: bool):
    arguments = (*features(10), gather_with_grad)
    whole = hard_loss_and_gradients(*arguments)
    assert 0 < whole[-1] < 100  # the accuracy
    for found, expected in zip(hard_loss_and_gradients(*arguments, 3), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for tile in (None, 3):
        found = two_ranks(hard_loss_and_gradients, *arguments, tile)
        for rank in found:
            for place in (0, 4, 5):  # the loss, the gradient of the scale and the accuracy, as means over ranks
                torch.testing.assert_close(rank[place], whole[place], rtol=1e-10, atol=1e-12)
        for place in (1, 2, 3):
            gradient = torch.cat([rank[place] for rank in found]) / 2
            torch.testing.assert_close(gradient, whole[place], rtol=1e-10, atol=1e-12)


def test_the_share_of_images_nearer_to_their_caption_than_to_its_hard_one():
    model, objective = small_model("neg_clip")
    encoded = {name: x.detach() for name, x in objective.encode(model, small_batch(6)).items()}
    found = objective.terms(model, encoded)["hard_acc"].item()
    nearer = [
        cosine(encoded["image"][i], encoded["text"][i]) > cosine(encoded["image"][i], encoded["hard"][i])
        for i in range(6)
        if encoded["has_hard"][i]
    ]
    assert found == pytest.approx(100 * sum(nearer) / len(nearer))


def test_captions_and_hard_captions_of_other_widths_are_encoded_as_by_themselves():
    model, objective = small_model("neg_clip")
    batch = small_batch(5)
    narrow = batch | {
        "text_hard": batch["text_hard"][:, :6],
        "text_hard_length": batch["text_hard_length"].clamp(max=6),
    }
    encoded = objective.encode(model, narrow)
    alone = model.encode_text(narrow["text_hard"], narrow["text_hard_length"])  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(encoded["hard"], alone)
    torch.testing.assert_close(encoded["text"], model.encode_text(batch["text"], batch["text_length"]))  # pyright: ignore
