"""Towers of a user's own train as OpenSLIP's do: in every precision, over ranks, and with what a run asks of them."""

from typing import Any

import pytest
import torch
from on_ranks import mean_over_ranks, rank_slice
from own_towers import ConvNet, GRUText
from ranks import Ranks
from small_models import small_batch
from torch import Tensor
from tower_options import options

from openslip.errors import UserError
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import CLIP
from openslip.training.compiling import compile_parts
from openslip.training.microbatch import loss_in_micro_batches
from openslip.training.towers import prepare_towers

LOCKED = {"image.locked": True, "image.weights": "runs/earlier"}
CHECKPOINTED = {"image.gradient_checkpointing": True}


def model() -> DualEncoder:
    torch.manual_seed(0)
    image, text = ConvNet(widths=[8, 12, 16]), GRUText(vocab_size=50, width=10)
    return DualEncoder(image_tower=image, text_tower=text, embed_dim=6, logit_scale_init=1.0, projection_bias=True)


def two_steps(
    sizes: list[int],
    dtype: torch.dtype = torch.float64,
    towers: dict[str, Any] | None = None,
    *,
    half: bool = False,
    compiled: bool = False,
) -> dict[str, Tensor]:
    """Losses, weights and statistics of two steps of gradient descent on this rank's part of the batch."""
    trained, objective = model().to(dtype), CLIP(gather_with_grad=True, max_logit_scale=4.6, same_caption="negative")
    prepare_towers(trained, options(**(towers or {})))
    if compiled:
        compile_parts(trained, {})
    trained.train()
    weights = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    batch = {key: rank_slice(value) for key, value in small_batch(12).items()}
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    found = {}
    for step in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
            loss = loss_in_micro_batches(objective, trained, batch, sizes)["loss"]
        loss.backward()
        for weight in weights:
            assert weight.grad is not None
            mean_over_ranks(weight.grad)
        optimizer.step()
        objective.after_step(trained)
        found[f"loss {step}"] = mean_over_ranks(loss.detach().clone())
    return found | {name: tensor.clone() for name, tensor in trained.state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        message = f"{name} differs"
        torch.testing.assert_close(found[name].double(), value.double(), rtol=rtol, atol=rtol, msg=message)


def test_float32_is_float64_but_for_rounding():
    assert_equal(two_steps([12], torch.float32), two_steps([12]), 1e-5)


def test_16_bits_train_in_the_same_direction():
    exact, found, before = two_steps([12]), two_steps([12], torch.float32, half=True), model().state_dict()
    assert abs(found["loss 1"] - exact["loss 1"]) < 0.02 * exact["loss 1"]
    for tower in ("image_tower.", "text_tower.", "image_projection", "text_projection"):
        names = [name for name, value in before.items() if name.startswith(tower) and value.is_floating_point()]
        moved = torch.cat([(exact[name] - before[name]).flatten() for name in names])
        apart = torch.cat([(found[name].double() - exact[name]).flatten() for name in names])
        assert 0 < apart.norm() < 0.1 * moved.norm(), tower


def test_two_ranks_equal_one_process(two_ranks: Ranks):
    whole = two_steps([12])
    for rank in two_ranks(two_steps, [6]):
        assert_equal(rank, whole, 1e-9)
    for rank in two_ranks(two_steps, [6], torch.float64, CHECKPOINTED):
        assert_equal(rank, whole, 1e-9)


def test_a_frozen_image_tower_allows_micro_batches_on_ranks(two_ranks: Ranks):
    whole = two_steps([12], towers=LOCKED)
    assert_equal(two_steps([5, 7], towers=LOCKED), whole, 1e-9)
    for rank in two_ranks(two_steps, [1, 5], torch.float64, LOCKED):
        assert_equal(rank, whole, 1e-9)
    with pytest.raises(UserError, match="micro_batch_size splits the batch"):
        two_steps([5, 7])


def test_a_text_tower_without_blocks_says_so():
    with pytest.raises(UserError, match=r"towers\.text\.gradient_checkpointing=true: GRUText has no blocks"):
        two_steps([12], towers={"text.gradient_checkpointing": True})


@pytest.mark.slow  # a C++ compiler runs
@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
@pytest.mark.parametrize("inner", [{}, CHECKPOINTED], ids=["plain", "checkpointed"])
def test_compiled_towers_make_the_same_steps(inner: dict[str, Any]):
    assert_equal(two_steps([12], towers=inner, compiled=True), two_steps([12]), 1e-7)
