"""The sigmoid loss and losses with equal captions against float64 loops, autograd, open_clip and transformers."""

import math

import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from forked import printed_by
from pair_losses import BIAS, SCALE, Pairs, batch_of_pairs, naive_info_nce, naive_sigmoid_loss, pair_loss, role
from ranks import Ranks
from torch import Tensor
from transformers import SiglipConfig, SiglipModel

from openslip.errors import UserError
from openslip.objectives.clip import CLIP
from openslip.objectives.equal_pairs import caption_keys
from openslip.objectives.siglip import SigLIP, sigmoid_loss
from openslip.objectives.similarity import Features

TILES = (None, 5, 64)  # of 24 rows; 5 does not divide them
CASES = [
    *(("sigmoid", same, True, False) for same in ("negative", "positive", "ignore")),
    *(("info_nce", same, True, False) for same in ("positive", "ignore")),
    *(("info_nce", same, False, False) for same in ("positive", "ignore")),
    ("info_nce", "positive", True, True),
]


def plain_loss(batch: Pairs, loss: str, same: str, gather_with_grad: bool, use_labels: bool) -> tuple[Tensor, ...]:
    """The loss and its gradients by autograd, from whole matrices of roles."""
    rows = range(len(batch.image))
    roles = [[role(batch, i, j, same, use_labels) for j in rows] for i in rows]
    positive, ignored = (
        torch.tensor([[name == each for each in row] for row in roles]) for name in ("positive", "ignore")
    )
    image, text = (x.clone().requires_grad_() for x in (batch.image, batch.text))
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (SCALE, BIAS))
    x, y = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    if loss == "sigmoid":
        logits = scale * x @ y.T + bias
        losses = -F.logsigmoid(torch.where(positive, logits, -logits))
        value = losses.masked_fill(ignored, 0.0).sum() / len(image)
    else:
        keys = (x, y) if gather_with_grad else (x.detach(), y.detach())
        both = []
        for rows_of, columns_of in ((x, keys[1]), (y, keys[0])):
            logs = (scale * rows_of @ columns_of.T).masked_fill(ignored, -torch.inf).log_softmax(dim=1)
            logs = logs.masked_fill(ignored, 0.0)
            both.append(-((logs * positive).sum(dim=1) / positive.sum(dim=1)).mean())
        value = (both[0] + both[1]) / 2
    value.backward()
    logits = (x @ y.T).detach().masked_fill(ignored, -torch.inf)
    accuracy = 100 * positive.gather(1, logits.argmax(dim=1, keepdim=True)).double().mean()
    gradients = [torch.zeros_like(z) if z.grad is None else z.grad for z in (image, text, scale, bias)]
    return (value.detach(), *gradients, accuracy)


def assert_all_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_loss_in_tiles_is_the_formula_as_a_loop(case: tuple[str, str, bool, bool]):
    loss, same, gather_with_grad, use_labels = case
    batch = batch_of_pairs()
    naive = naive_sigmoid_loss(batch, same) if loss == "sigmoid" else naive_info_nce(batch, same, use_labels)
    plain = plain_loss(batch, *case)
    assert 0 < plain[-1] < 100
    assert plain[0].item() == pytest.approx(naive, rel=1e-12)
    for tile in TILES:
        assert_all_close(pair_loss(loss, batch, same, tile, gather_with_grad, use_labels), plain)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_loss_and_gradients_of_one_process(two_ranks: Ranks, case: tuple[str, str, bool, bool]):
    ranks_equal_one_process(two_ranks, 2, case)


def ranks_equal_one_process(ranks: Ranks, world: int, case: tuple[str, str, bool, bool]) -> None:
    loss, same, gather_with_grad, use_labels = case
    batch = batch_of_pairs()
    plain = plain_loss(batch, *case)
    for tile in TILES:
        found = ranks(pair_loss, loss, batch, same, tile, gather_with_grad, use_labels)
        # a feature's gradient of the mean loss over ranks is 1 / ranks of the one that a rank's backward pass leaves
        features = [torch.cat([rank[part] for rank in found]) / world for part in (1, 2)]
        for rank in found:
            assert_all_close((rank[0], *features, *rank[3:]), plain)


@pytest.mark.slow
def test_three_ranks_give_the_loss_and_gradients_of_one_process():
    ranks = Ranks(3)
    for case in CASES:
        ranks_equal_one_process(ranks, 3, case)
    ranks.close()


def test_the_sigmoid_loss_equals_open_clip():
    batch = batch_of_pairs()
    image, text = (x.clone().requires_grad_() for x in (batch.image, batch.text))
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (SCALE, BIAS))
    loss = open_clip.loss.SigLipLoss()(F.normalize(image, dim=-1), F.normalize(text, dim=-1), scale, bias)
    assert isinstance(loss, Tensor)
    loss.backward()
    theirs = (loss.detach(), *(x.grad for x in (image, text, scale, bias) if x.grad is not None))
    assert_all_close(pair_loss("sigmoid", batch, "negative", 5)[:5], theirs)


def test_the_sigmoid_loss_equals_transformers():
    torch.manual_seed(0)
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = {**width, "image_size": 16, "patch_size": 8}, {**width, "vocab_size": 20}
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).double().eval()  # pyright: ignore
    model.logit_scale.data.fill_(math.log(SCALE))
    model.logit_bias.data.fill_(BIAS)
    ids, pixels = torch.randint(20, (6, 8)), torch.randn(6, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        theirs = model(input_ids=ids, pixel_values=pixels, return_loss=True)
        images, texts = (Features(x, gather_with_grad=True) for x in (theirs.image_embeds, theirs.text_embeds))
        ours, _ = sigmoid_loss(images, texts, model.logit_scale.exp()[0], model.logit_bias[0])
    torch.testing.assert_close(ours, theirs.loss, rtol=1e-12, atol=0)


def test_float32_losses_of_confident_pairs_are_exact():
    # ln(1 + exp(-z)) of a positive with a large z is lost if it is computed as softplus(z) - z.
    x = torch.eye(8)
    images, texts = (Features(x, gather_with_grad=True) for _ in range(2))
    scale, bias = torch.tensor(30.0), torch.tensor(-15.0)
    with torch.no_grad():
        loss, _ = sigmoid_loss(images, texts, scale, bias)
    assert loss.item() == pytest.approx(8 * math.log1p(math.exp(-15.0)), rel=1e-5)


def test_equal_captions_have_equal_keys_whatever_their_padding():
    text = torch.tensor([[5, 6, 7, 0], [5, 6, 7, 9], [5, 7, 6, 0], [5, 6, 0, 0], [5, 6, 0, 0], [0, 0, 0, 0]])
    lengths = torch.tensor([3, 3, 3, 3, 2, 1])
    keys = [tuple(key) for key in caption_keys(text, lengths).tolist()]
    assert keys[0] == keys[1]
    assert len({*keys}) == 5  # order, length and id 0 count
    wider = F.pad(text, (0, 3), value=3)
    assert caption_keys(wider, lengths).tolist() == caption_keys(text, lengths).tolist()


def test_no_two_of_many_captions_share_half_a_key():
    text = torch.cartesian_prod(*[torch.arange(12)] * 5)  # 248 832 similar captions
    keys = caption_keys(text, torch.full((len(text),), 5))
    for half in keys.T:
        assert len(half.unique()) == len(text)


def test_an_unknown_role_is_refused():
    for make in (
        lambda: CLIP(gather_with_grad=True, max_logit_scale=4.6, same_caption="positives"),
        lambda: SigLIP(same_caption="positives", max_logit_scale=None),
    ):
        with pytest.raises(UserError, match="same_caption=positives: expected negative, positive or ignore"):
            make()


def test_a_feature_that_is_no_number_shows_in_the_losses():
    batch = batch_of_pairs()
    batch.image[7, 2] = math.nan
    for loss in ("sigmoid", "info_nce"):
        assert pair_loss(loss, batch, "positive", 5)[0].isnan()


MEMORY = """
from pathlib import Path

import torch

from openslip.objectives.equal_info_nce import equal_info_nce
from openslip.objectives.equal_pairs import EqualPairs
from openslip.objectives.siglip import sigmoid_loss
from openslip.objectives.similarity import Features

torch.set_num_threads(1)


def kib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def both(rows):
    x = torch.randn(2, rows, 32, requires_grad=True)
    sides = [Features(z, gather_with_grad=True) for z in x.unbind()]
    equal = EqualPairs(torch.randint(9, (rows, 2)), role="positive")
    (sigmoid_loss(*sides, torch.tensor(10.0), torch.tensor(-10.0), equal)[0]
     + equal_info_nce(*sides, torch.tensor(10.0), equal)[0]).backward()


both(1024)
before = kib("VmRSS")
both(8192)
print(kib("VmHWM") - before)
"""


def test_memory_is_linear_in_the_batch():
    # One matrix of 8192 x 8192 logits in float32 is 256 MiB, one of booleans 64 MiB.
    assert int(printed_by(MEMORY)) < 40 * 1024
