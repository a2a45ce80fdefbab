"""FILIP against the published implementation's recorded step and against the paper's formula as float64 loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import printed_by
from marks import slow
from on_ranks import token_loss_and_gradients
from ranks import Ranks
from recorded_filip import arrays_of, recorded_step
from small_models import small_batch, small_model
from torch import Tensor

from openslip.errors import UserError
from openslip.models.tower import Tokens
from openslip.objectives.filip import padded_tokens
from openslip.objectives.late_interaction import (
    checked_top_tokens,
    late_interaction_logits,
    token_info_nce,
    top_of_own_pair,
    unit_tokens,
)

FOLDER = Path(__file__).parents[1] / "data" / "declip"
ONE, TWO = FOLDER / "filip_one_rank.npz", FOLDER / "filip_two_ranks.npz"


def assert_recorded(found: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    for name, tensor in found.items():
        expected = stored[name].to(tensor.dtype).view(tensor.shape)
        torch.testing.assert_close(tensor, expected, rtol=1e-7, atol=1e-9, msg=f"{name} differs")


def test_a_published_step_is_computed():
    stored = arrays_of(ONE)
    found = recorded_step(ONE)
    assert len(found) == 13
    assert_recorded(found, stored)
    # Without the choice of 16 tokens it is another loss: the record can tell.
    loss = "step0/loss/rank0/losses"
    assert not torch.allclose(recorded_step(ONE, top_tokens=None)[loss], found[loss], rtol=1e-3)


def test_a_published_step_of_two_ranks_is_computed(two_ranks: Ranks):
    stored = arrays_of(TWO)
    for found in two_ranks(recorded_step, TWO):
        assert_recorded(found, stored)


def random_tokens(samples: int = 7, patches: int = 5, words: int = 6, dim: int = 4) -> tuple[Tokens, Tokens]:
    """Tokens with captions of 1 to `words` words."""
    generator = torch.Generator().manual_seed(samples)
    image = torch.randn(samples, patches, dim, generator=generator, dtype=torch.float64)
    text = torch.randn(samples, words, dim, generator=generator, dtype=torch.float64)
    lengths = 1 + torch.arange(samples) % words
    mask = torch.arange(words) < lengths[:, None]
    return Tokens(image, torch.ones(samples, patches, dtype=torch.bool)), Tokens(text, mask)


def real(tokens: Tokens, sample: int) -> list[list[float]]:
    """Unit-length features of a sample's real tokens."""
    kept = tokens.features[sample][tokens.mask[sample]].tolist()
    return [[x / math.sqrt(sum(y * y for y in token)) for x in token] for token in kept]


def naive_similarity(query: list[list[float]], key: list[list[float]]) -> float:
    """Equation 4 or 5 of the paper."""
    products = [[sum(a * b for a, b in zip(q, k, strict=True)) for k in key] for q in query]
    return sum(max(row) for row in products) / len(query)


def naive_loss(image: Tokens, text: Tokens, scale: float) -> float:
    """Equations 1 to 3 of the paper."""
    count = len(image.features)
    images, texts = ([real(side, i) for i in range(count)] for side in (image, text))
    total = 0.0
    for i in range(count):
        row = [math.exp(scale * naive_similarity(images[i], text)) for text in texts]
        column = [math.exp(scale * naive_similarity(texts[i], image)) for image in images]
        total -= math.log(row[i] / sum(row)) + math.log(column[i] / sum(column))
    return total / (2 * count)


def test_the_loss_is_the_papers_formula():
    image, text = random_tokens()
    loss, _ = token_info_nce(image, text, torch.tensor(14.3).double(), top_tokens=None, gather_with_grad=True)
    assert loss.item() == pytest.approx(naive_loss(image, text, 14.3), rel=1e-7)
    everything = Tokens(text.features, torch.ones_like(text.mask))
    assert naive_loss(image, everything, 14.3) != pytest.approx(loss.item(), rel=1e-3)  # padding would count


def test_the_gradient_is_that_of_the_formula():
    image, text = random_tokens(samples=4)
    features = [side.features.clone().requires_grad_() for side in (image, text)]
    sides = [Tokens(x, side.mask) for x, side in zip(features, (image, text), strict=True)]
    token_info_nce(sides[0], sides[1], torch.tensor(14.3).double(), top_tokens=None, gather_with_grad=True)[
        0
    ].backward()
    step = 1e-6
    for side, place in ((0, (1, 2, 0)), (0, (3, 4, 3)), (1, (2, 1, 1)), (1, (0, 0, 2))):
        values = []
        for sign in (1, -1):
            moved = [Tokens(each.features.clone(), each.mask) for each in (image, text)]
            moved[side].features[place] += sign * step
            values.append(naive_loss(moved[0], moved[1], 14.3))
        grad = features[side].grad
        assert grad is not None
        assert grad[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6, abs=1e-9)
    assert features[1].grad is not None
    assert not features[1].grad[~text.mask].any()  # padding gets no gradient


def test_the_tokens_that_are_kept_are_those_most_similar_to_the_own_pair_as_a_whole():
    image, text = random_tokens()
    image, text = (Tokens(unit_tokens(side.features), side.mask) for side in (image, text))
    kept_patches, kept_words = top_of_own_pair(image, text, 2)
    for i in range(len(image.features)):
        patches, words = real(image, i), real(text, i)
        of_patch = [sum(sum(a * b for a, b in zip(p, w, strict=True)) for w in words) for p in patches]
        of_word = [sum(sum(a * b for a, b in zip(p, w, strict=True)) for p in patches) for w in words]
        for kept, tokens, sums in ((kept_patches, patches, of_patch), (kept_words, words, of_word)):
            best = sorted(range(len(sums)), key=lambda place: -sums[place])[:2]
            found = kept.features[i][kept.mask[i]].tolist()
            assert np.array(sorted(found)) == pytest.approx(np.array(sorted(tokens[place] for place in best)))


TILES = [1, 8, 19]  # tokens: tiles of one sample, of unequal numbers, and of a part of the batch


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("top_tokens", [None, 3])
@pytest.mark.parametrize("gather_with_grad", [True, False])
def test_tiles_do_not_change_the_loss(tile: int, top_tokens: int | None, gather_with_grad: bool):
    arguments = (*random_tokens(), top_tokens, gather_with_grad)
    for found, whole in zip(
        token_loss_and_gradients(*arguments, tile), token_loss_and_gradients(*arguments, 10_000), strict=True
    ):
        torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("top_tokens", "gather_with_grad"), [(None, True), slow(None, False), slow(3, True), slow(3, False)]
)
def test_two_ranks_equal_one_process(two_ranks: Ranks, top_tokens: int | None, gather_with_grad: bool):
    # The second rank's captions are shorter, and cut to their longest: ranks gather different numbers of tokens.
    image, text = random_tokens(samples=6)
    mask = text.mask & (torch.arange(6) < torch.tensor([6, 6, 6, 4, 4, 4])[:, None])
    arguments = (image, Tokens(text.features, mask), top_tokens, gather_with_grad, 8)
    whole = token_loss_and_gradients(*arguments)
    found = two_ranks(token_loss_and_gradients, *arguments)
    for rank in found:
        for place in (0, 3, 4):  # the loss, the gradient of the scale and the accuracy, as means over ranks
            torch.testing.assert_close(rank[place], whole[place], rtol=1e-10, atol=1e-12)
    for place in (1, 2):
        torch.testing.assert_close(torch.cat([rank[place] for rank in found]) / 2, whole[place], rtol=1e-10, atol=1e-12)


def test_detached_keys_get_no_gradient():
    image, text = random_tokens()
    with_grad = token_loss_and_gradients(image, text, None, True, 8)
    without = token_loss_and_gradients(image, text, None, False, 8)
    torch.testing.assert_close(without[0], with_grad[0])
    torch.testing.assert_close(without[3], with_grad[3])
    assert not torch.allclose(without[1], with_grad[1], rtol=1e-2)


def test_the_class_token_is_no_patch():
    model, objective = small_model("filip")
    features = objective.encode(model, small_batch(2))
    assert features["image_tokens"].shape == (2, 4, 10)  # 16 pixels in patches of 8
    with_class_token = model.get_submodule("image_tower").pooled_and_tokens(small_batch(2)["image"])[1]  # pyright: ignore
    assert with_class_token.features.shape[1] == 5


def test_padding_that_counts_is_encoded_like_words():
    model, _ = small_model("filip")
    batch = small_batch(3)
    width = int(batch["text_length"].max())
    shorter = padded_tokens(model, batch["text"][:, :width], batch["text_length"])  # pyright: ignore[reportArgumentType]
    assert shorter.mask.all()
    assert shorter.mask.shape == (3, 9)  # the context
    own = model.get_submodule("text_tower").tokens(batch["text"], batch["text_length"])  # pyright: ignore
    torch.testing.assert_close(shorter.features[own.mask], own.features[own.mask])
    assert shorter.features[~own.mask].abs().min() > 0


def test_models_for_which_the_objective_has_no_meaning_are_refused():
    model, _ = small_model("clip")
    _, objective = small_model("filip")
    with pytest.raises(UserError, match=r"no joint space of tokens; set model\.token_dim=256"):
        objective.setup(model)
    batch = small_batch(2)
    model.get_submodule("text_tower").input_size = None  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    with pytest.raises(UserError, match=r"TextTransformer has no context length .* objective\.count_padding=false"):
        padded_tokens(model, batch["text"], batch["text_length"])  # pyright: ignore[reportArgumentType]


def test_both_logit_scales_are_clamped():
    model, objective = small_model("filip")
    for name in ("logit_scale", "token_logit_scale"):
        model.get_parameter(name).data.fill_(9.0)
    objective.after_step(model)
    assert [model.get_parameter(name).item() for name in ("logit_scale", "token_logit_scale")] == [4.6052, 4.6052]


def test_a_feature_that_is_no_number_shows_in_the_loss():
    image, text = random_tokens()
    image.features[3, 2, 1] = math.nan
    assert late_interaction_logits(image, text, top_tokens=None, gather_with_grad=True)[0].isnan().any()


MEMORY = """
from pathlib import Path

import torch
from openslip.models.tower import Tokens
from openslip.objectives.late_interaction import token_info_nce

torch.set_num_threads(1)


def kib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def step(samples):
    generator = torch.Generator().manual_seed(0)
    patches, words = (torch.randn(samples, n, 16, generator=generator, requires_grad=True) for n in (50, 16))
    sides = [Tokens(x, torch.ones(x.shape[:2], dtype=torch.bool)) for x in (patches, words)]
    token_info_nce(sides[0], sides[1], torch.tensor(14.3), top_tokens=None, gather_with_grad=True)[0].backward()


step(16)
before = kib("VmRSS")
step(256)
print(kib("VmHWM") - before)
"""


def test_memory_has_no_term_of_all_pairs_of_tokens():
    # All similarities of 256 x 50 x 256 x 16 tokens are 200 MiB in float32; the places of the maxima are 8 MiB.
    assert int(printed_by(MEMORY)) < 50 * 1024


@pytest.mark.parametrize("count", [0, -1])
def test_fewer_than_one_token_is_refused(count: int):
    with pytest.raises(UserError, match=f"top_tokens={count}: expected at least 1"):
        checked_top_tokens(count)
