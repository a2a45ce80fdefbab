"""Losses against open_clip's and against the papers' formulas as naive float64 loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from losses import clip_loss, nt_xent
from on_ranks import clip_loss_and_gradients, nt_xent_and_gradients, open_clip_loss_and_gradients
from ranks import Ranks
from small_models import small_model
from torch import Tensor

from openslip.objectives.similarity import unit_length


def random_features(rows: int = 8, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return first, torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def naive_clip_loss(image: Tensor, text: Tensor, scale: float) -> float:
    total = 0.0
    n = len(image)
    for i in range(n):
        row = [math.exp(scale * cosine(image[i], text[j])) for j in range(n)]
        column = [math.exp(scale * cosine(image[j], text[i])) for j in range(n)]
        total -= math.log(row[i] / sum(row)) + math.log(column[i] / sum(column))
    return total / (2 * n)


def naive_nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> float:
    z = torch.cat([z1, z2])
    n = len(z1)
    total = 0.0
    for i in range(2 * n):
        others = [math.exp(cosine(z[i], z[k]) / temperature) for k in range(2 * n) if k != i]
        partner = math.exp(cosine(z[i], z[(i + n) % (2 * n)]) / temperature)
        total -= math.log(partner / sum(others))
    return total / (2 * n)


def test_clip_loss_is_figure_3_of_the_paper():
    image, text = random_features()
    loss, accuracy = clip_loss(image, text, torch.tensor(14.3, dtype=torch.float64), gather_with_grad=True)
    assert loss.item() == pytest.approx(naive_clip_loss(image, text, 14.3), rel=1e-12)
    right = [max(range(8), key=lambda j: cosine(image[i], text[j])) == i for i in range(8)]
    assert accuracy.item() == pytest.approx(100 * sum(right) / 8)


def test_nt_xent_is_algorithm_1_of_the_paper():
    z1, z2 = random_features()
    loss, _ = nt_xent(z1, z2, 0.1)
    assert loss.item() == pytest.approx(naive_nt_xent(z1, z2, 0.1), rel=1e-12)


@pytest.mark.parametrize("gather_with_grad", [True, False])
def test_two_ranks_equal_open_clip(two_ranks: Ranks, gather_with_grad: bool):
    features = random_features()
    ours = two_ranks(clip_loss_and_gradients, *features, gather_with_grad)
    theirs = two_ranks(open_clip_loss_and_gradients, *features, gather_with_grad)
    for rank in range(2):
        for mine, other in zip(ours[rank][:4], theirs[rank], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_one_process_equals_open_clip():
    features = random_features()
    ours = clip_loss_and_gradients(*features, True)
    theirs = open_clip_loss_and_gradients(*features, True)
    for mine, other in zip(ours[:4], theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


def test_detached_keys_give_half_the_gradient_even_in_one_process():
    # A pair's gradient comes once through the query and once through the key; the key half is gone.
    image, text = random_features()
    _, with_grad, _, scale_grad, _ = clip_loss_and_gradients(image, text, True)
    _, without_grad, _, scale_without, _ = clip_loss_and_gradients(image, text, False)
    naive_image = image.clone().requires_grad_()
    unit = torch.nn.functional.normalize
    logits = 14.3 * unit(naive_image, dim=-1) @ unit(text, dim=-1).T
    torch.nn.functional.cross_entropy(logits, torch.arange(8)).div(2).backward()
    assert naive_image.grad is not None
    torch.testing.assert_close(without_grad, naive_image.grad, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(with_grad, without_grad, rtol=1e-2)
    torch.testing.assert_close(scale_grad, scale_without, rtol=1e-10, atol=1e-12)


def test_nt_xent_on_two_ranks_equals_one_process(two_ranks: Ranks):
    z1, z2 = random_features()
    loss, grad1, grad2, _ = nt_xent_and_gradients(z1, z2)
    ranks = two_ranks(nt_xent_and_gradients, z1, z2)
    for rank_loss, *_ in ranks:
        torch.testing.assert_close(rank_loss, loss, rtol=1e-12, atol=0)
    # a feature's gradient of the mean loss over ranks is half the one that a rank's backward leaves
    torch.testing.assert_close(torch.cat([r[1] for r in ranks]) / 2, grad1, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.cat([r[2] for r in ranks]) / 2, grad2, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_loss_is_computed_in_float32_under_autocast_whatever_its_features(dtype: torch.dtype):
    model, objective = small_model("clip")
    model.float().logit_scale.data.fill_(4.0)  # pyright: ignore
    image, text = (feature.to(dtype) for feature in random_features(rows=64))
    exact, _ = clip_loss(image.double(), text.double(), torch.tensor(4.0).double().exp(), gather_with_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.terms(model, {"image": image, "text": text})["loss"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_16_bits_are_scaled_in_float32(dtype: torch.dtype):
    rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = unit_length(rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), F.normalize(rows.double(), dim=1), rtol=1e-6, atol=0)


def test_float64_features_stay_float64():
    image, text = random_features(rows=8)
    assert clip_loss(image, text, torch.tensor(3.0).double(), gather_with_grad=True)[0].dtype == torch.float64
