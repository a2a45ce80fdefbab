"""Promise 1: any split of the global batch, over ranks and micro-batches, makes the same update."""

import itertools

import pytest
import torch
from marks import slow
from on_ranks import ddp_gradients, gradient_beside_a_gather, state_after, step_gradients, step_gradients_in_tiles
from ranks import Ranks
from small_models import METHODS as WITH_A_LOSS_CURVE
from small_models import small_batch, small_model
from tower_options import options

from openslip.errors import UserError
from openslip.training.microbatch import loss_in_micro_batches, micro_batch_sizes
from openslip.training.towers import prepare_towers

METHODS = (*WITH_A_LOSS_CURVE, "filip", "neg_clip")
GLOBAL_BATCH = 12
TILES = [None, 5]  # losses without tiles, and in tiles that do not divide the batch


def assert_equal(found: dict, expected: dict, atol: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        message = f"{name} differs"
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=atol, msg=message)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("gather_with_grad", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_equal_the_whole_batch(method: str, gather_with_grad: bool, tile: int | None):
    whole = step_gradients(method, gather_with_grad, GLOBAL_BATCH, [12])
    for sizes in ([12], [6, 6], [3, 1, 4, 2, 2]):
        found = step_gradients_in_tiles(tile, method, gather_with_grad, GLOBAL_BATCH, sizes)
        assert_equal(found, whole)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("gather_with_grad", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_one_process(two_ranks: Ranks, method: str, gather_with_grad: bool, tile: int | None):
    whole = step_gradients(method, gather_with_grad, GLOBAL_BATCH, [12])
    # An accuracy is a mean over the rows of a rank, and the loss likewise: their means over ranks are the global ones.
    for sizes in ([6], [3, 3], [1, 2, 1, 1, 1]):
        for rank in two_ranks(step_gradients_in_tiles, tile, method, gather_with_grad, GLOBAL_BATCH, sizes):
            assert_equal(rank, whole)


SOME = ([[5, 3, 6, 2, 4]], [[3, 1, 2, 3, 1]])  # micro-batches on one process, and on each of two ranks
ALL = ([[20], [10, 10], [5, 3, 6, 2, 4]], [[10], [5, 5], [3, 1, 2, 3, 1]])


FEW = [("slip", True, SOME), ("clip", False, SOME)]
EVERY = itertools.product(METHODS, [True, False], [SOME, ALL])
OTHERS = [slow(*case) for case in EVERY if case not in FEW]


@pytest.mark.parametrize(("method", "gather_with_grad", "splits"), [*FEW, *OTHERS])
def test_weights_after_20_steps_are_equal_for_all_splits(
    two_ranks: Ranks, method: str, gather_with_grad: bool, splits: tuple[list[list[int]], list[list[int]]]
):
    atol = 1e-7  # biases whose true gradient is zero begin at zero and move by AdamW's share of rounding noise
    whole = state_after(20, None, method, gather_with_grad, 20, [20])
    for tile in TILES:
        for sizes in splits[0]:
            assert_equal(state_after(20, tile, method, gather_with_grad, 20, sizes), whole, atol)
        for sizes in splits[1]:
            for rank in two_ranks(state_after, 20, tile, method, gather_with_grad, 20, sizes):
                assert_equal(rank, whole, atol)


def test_a_gather_leaves_the_gradient_of_what_is_added_to_it(two_ranks: Ranks):
    for gradient in two_ranks(gradient_beside_a_gather):
        assert gradient.tolist() == [[6.0, 6.0], [6.0, 6.0]]  # 2 (1 + 3 y) x 3, for this rank's own y


def test_a_gradient_of_the_wrong_split_is_noticed():
    # The check itself can fail: two half batches with their own negatives are not the whole batch.
    whole = step_gradients("clip", True, 12, [12])
    half = step_gradients("clip", True, 6, [6])
    with pytest.raises(AssertionError):
        assert_equal(half, whole)


def test_micro_batches_cover_the_batch():
    assert micro_batch_sizes(10, 4) == [4, 4, 2]
    assert micro_batch_sizes(8, 4) == [4, 4]
    assert micro_batch_sizes(8, None) == [8]
    assert micro_batch_sizes(3, 8) == [3]


WITH_BATCH_NORM = ("batch norm", "batch norm with activation")


@pytest.mark.parametrize("method", ["clip", "slip"])
@pytest.mark.parametrize("image", WITH_BATCH_NORM)
def test_two_ranks_share_the_batch_norm_of_a_tower(two_ranks: Ranks, image: str, method: str):
    whole = step_gradients(method, True, GLOBAL_BATCH, [12], image=image)
    buffers = [name for name in whole if name.startswith("buffer.model.image_tower")]
    assert {name.rpartition(".")[2] for name in buffers} == {"running_mean", "running_var", "num_batches_tracked"}
    for rank in two_ranks(step_gradients, method, True, GLOBAL_BATCH, [6], {}, image):
        assert_equal(rank, whole)
    for rank in two_ranks(ddp_gradients, method, GLOBAL_BATCH, [6], {}, image):
        assert_equal(rank, {name: value for name, value in whole.items() if name.startswith("gradient.")})


@pytest.mark.parametrize("image", WITH_BATCH_NORM)
def test_weights_and_statistics_of_a_tower_with_batch_norm_are_equal_after_steps(two_ranks: Ranks, image: str):
    # Long enough for an error to grow, short enough that rounding does not: Adam divides by small gradients
    whole = state_after(5, None, "slip", True, GLOBAL_BATCH, [12], image)
    for rank in two_ranks(state_after, 5, None, "slip", True, GLOBAL_BATCH, [6], image):
        assert_equal(rank, whole, 1e-7)


def test_a_checkpointed_tower_counts_a_batch_of_two_ranks_once(two_ranks: Ranks):
    towers = options(**{"image.gradient_checkpointing": True})
    whole = step_gradients("clip", True, GLOBAL_BATCH, [12], image="batch norm")
    assert_equal(step_gradients("clip", True, GLOBAL_BATCH, [12], towers, "batch norm"), whole)
    for rank in two_ranks(step_gradients, "clip", True, GLOBAL_BATCH, [6], towers, "batch norm"):
        assert_equal(rank, whole)


@pytest.mark.parametrize("image", WITH_BATCH_NORM)
def test_a_frozen_tower_with_batch_norm_allows_every_split(two_ranks: Ranks, image: str):
    towers = options(**{"image.locked": True, "image.weights": "runs/earlier"})
    whole = step_gradients("slip", True, GLOBAL_BATCH, [12], towers, image)
    assert_equal(step_gradients("slip", True, GLOBAL_BATCH, [5, 1, 6], towers, image), whole)
    for rank in two_ranks(step_gradients, "slip", True, GLOBAL_BATCH, [2, 4], towers, image):
        assert_equal(rank, whole)


@pytest.mark.parametrize("image", WITH_BATCH_NORM)
def test_a_tower_with_batch_norm_refuses_micro_batches(image: str):
    model, objective = small_model("clip", image=image)
    prepare_towers(model, {})
    with pytest.raises(
        UserError, match=r"micro_batch_size splits the batch, .* image_tower needs statistics of the whole batch: set"
    ) as raised:
        loss_in_micro_batches(objective, model, small_batch(4), [2, 2])
    assert "\n" not in str(raised.value)
    loss_in_micro_batches(objective, model, small_batch(4), [4])
