"""Losses in tiles against the same losses without tiles, open_clip's, and the papers' formulas as float64 loops."""

import math

import pytest
import torch
from forked import printed_by
from losses import clip_loss, nt_xent
from on_ranks import clip_loss_and_gradients, in_tiles, nt_xent_and_gradients, open_clip_loss_and_gradients
from ranks import Ranks
from torch import Tensor
from torch.nn.functional import normalize

from openslip.objectives import tiles

TILES = [1, 4, 7, 64]  # of 13 rows: none divides them but 1, and the last is larger


def pairs(rows: int, dim: int = 6, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Related features, so that some positives lead and others do not."""
    generator = torch.Generator().manual_seed(rows)
    first = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return first, first + noise * torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def assert_all_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("rows", [1, 2, 13])
@pytest.mark.parametrize("gather_with_grad", [True, False])
def test_info_nce_equals_the_plain_form(rows: int, tile: int, gather_with_grad: bool):
    plain = clip_loss_and_gradients(*pairs(rows), gather_with_grad)
    assert rows < 13 or 0 < plain[-1] < 100  # the accuracy
    assert_all_close(clip_loss_and_gradients(*pairs(rows), gather_with_grad, tile), plain)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("rows", [1, 2, 13])
def test_nt_xent_equals_the_plain_form(rows: int, tile: int):
    plain = nt_xent_and_gradients(*pairs(rows))
    assert rows < 13 or 0 < plain[-1] < 100
    assert_all_close(nt_xent_and_gradients(*pairs(rows), tile), plain)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("gather_with_grad", [True, False])
def test_info_nce_on_two_ranks_equals_the_plain_form_and_open_clip(two_ranks: Ranks, tile: int, gather_with_grad: bool):
    features = pairs(26)
    found = two_ranks(clip_loss_and_gradients, *features, gather_with_grad, tile)
    plain = two_ranks(clip_loss_and_gradients, *features, gather_with_grad)
    theirs = two_ranks(open_clip_loss_and_gradients, *features, gather_with_grad)
    for rank in range(2):
        assert_all_close(found[rank], plain[rank])
        assert_all_close(found[rank][:4], theirs[rank])


@pytest.mark.parametrize("tile", TILES)
def test_nt_xent_on_two_ranks_equals_the_plain_form_and_one_process(two_ranks: Ranks, tile: int):
    features = pairs(26)
    found = two_ranks(nt_xent_and_gradients, *features, tile)
    plain = two_ranks(nt_xent_and_gradients, *features)
    for rank in range(2):
        assert_all_close(found[rank], plain[rank])
    loss, to_z1, to_z2, accuracy = nt_xent_and_gradients(*features)
    # a feature's gradient of the mean loss over ranks is half the one that a rank's backward leaves
    halves = [torch.cat([rank[part] for rank in found]) / 2 for part in (1, 2)]
    assert_all_close((found[0][0], *halves, found[0][3]), (loss, to_z1, to_z2, accuracy))


def test_info_nce_is_the_formula():
    image, text = (normalize(feature, dim=-1) for feature in pairs(9))
    total = 0.0
    for i in range(9):
        row = [math.exp(14.3 * float(image[i] @ text[j])) for j in range(9)]
        column = [math.exp(14.3 * float(image[j] @ text[i])) for j in range(9)]
        total -= math.log(row[i] / sum(row)) + math.log(column[i] / sum(column))
    assert clip_loss_and_gradients(image, text, True, 4)[0].item() == pytest.approx(total / 18, rel=1e-12)


def test_nt_xent_is_the_formula():
    z = normalize(torch.cat(pairs(9)), dim=-1)
    total = 0.0
    for i in range(18):
        others = [math.exp(10 * float(z[i] @ z[k])) for k in range(18) if k != i]
        total -= 10 * float(z[i] @ z[(i + 9) % 18]) - math.log(sum(others))
    assert nt_xent_and_gradients(*z.chunk(2), tile=4)[0].item() == pytest.approx(total / 18, rel=1e-12)


@pytest.mark.parametrize("tile", TILES)
def test_of_equal_captions_the_first_leads(tile: int):
    # Caption 5 is caption 2 again: by argmax, picture 2 still counts as right and picture 5 does not.
    image = torch.eye(12, dtype=torch.float64)
    text = image[[0, 1, 2, 3, 4, 2, 6, 7, 8, 9, 10, 11]]
    for form in (tile, None):
        accuracy = clip_loss_and_gradients(image, text, True, form)[-1]
        assert accuracy.item() == pytest.approx(100 * 11 / 12)


def clip_gradient(image: Tensor, text: Tensor, scale: float, tile: int | None) -> Tensor:
    image = image.clone().requires_grad_()
    with in_tiles(tile):
        loss, _ = clip_loss(image, text, torch.tensor(scale, dtype=image.dtype), gather_with_grad=True)
        loss.backward()
    assert image.grad is not None
    return image.grad


def test_float32_gradients_hold_where_all_is_learnt():
    # At scale 100 a log-sum-exp is near 100; probabilities made from it, rounded to float32, are 30 times as far off.
    image, text = pairs(200, dim=16, noise=0.3)
    exact = clip_gradient(image, text, 100.0, None)
    plain = clip_gradient(image.float(), text.float(), 100.0, None).double()
    found = clip_gradient(image.float(), text.float(), 100.0, 64).double()
    assert (found - exact).norm() <= 2 * (plain - exact).norm()


def test_autocast_changes_nothing():
    image, text = (feature.float() for feature in pairs(40))
    z1, z2 = (feature.float() for feature in pairs(41))
    expected = (*clip_loss_and_gradients(image, text, True, 16), *nt_xent_and_gradients(z1, z2, 16))
    with torch.autocast("cpu", torch.bfloat16):  # backward as well
        found = (*clip_loss_and_gradients(image, text, True, 16), *nt_xent_and_gradients(z1, z2, 16))
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_a_feature_that_is_no_number_shows_in_the_loss():
    image, text = pairs(13)
    image[7, 2] = math.nan
    with in_tiles(4):
        assert clip_loss(image, text, torch.tensor(14.3).double(), gather_with_grad=True)[0].isnan()
        assert nt_xent(image, text, 0.1)[0].isnan()


def test_tiles_begin_where_logits_are_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "PLAIN_UP_TO", 25 * 25)
    image, text = pairs(26)
    image.requires_grad_()

    def clip_node(rows: int) -> str:
        scale = torch.tensor(14.3, dtype=torch.float64)
        node = clip_loss(image[:rows], text[:rows], scale, gather_with_grad=True)[0].grad_fn
        assert node is not None
        return type(node).__name__

    def nt_xent_node(rows: int) -> str:
        node = nt_xent(image[:rows], text[:rows], 0.1)[0].grad_fn
        assert node is not None
        return type(node).__name__

    assert clip_node(26) == "_InfoNCEBackward"
    assert clip_node(25) != "_InfoNCEBackward"
    assert nt_xent_node(13) == "_NTXentBackward"  # both views of 13 pictures: 26 rows
    assert nt_xent_node(12) != "_NTXentBackward"


MEMORY = """
from pathlib import Path

import torch
from losses import clip_loss, nt_xent

torch.set_num_threads(1)


def kib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def both(rows):
    x, y = torch.randn(2, rows, 32).unbind()
    x.requires_grad_()
    clip_loss(x, y, torch.tensor(14.3), gather_with_grad=True)[0].backward()
    nt_xent(x[: rows // 2], y[: rows // 2], 0.1)[0].backward()


both(1024)
before = kib("VmRSS")
both(8192)
print(kib("VmHWM") - before)  # getrusage would begin with what the parent process held
"""


def test_memory_is_linear_in_the_batch():
    # One matrix of 8192 x 8192 logits in float32 is 256 MiB; features and gradients of this width take 1 MiB each.
    assert int(printed_by(MEMORY)) < 32 * 1024
