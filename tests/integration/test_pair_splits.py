"""Any split of the global batch makes the same update where equal captions or labels relate samples of all ranks."""

import pytest
import torch
from marks import slow
from on_ranks import state_after, step_gradients, step_gradients_in_tiles
from ranks import Ranks
from small_models import PAIR_METHODS
from torch import Tensor

GLOBAL_BATCH = 12
WHOLE = [12]
IN_ONE_PROCESS = ([12], [6, 6], [3, 1, 4, 2, 2])
ON_TWO_RANKS = ([6], [2, 4], [1, 2, 1, 1, 1])
TILES = (None, 5)  # one tile, and tiles that do not divide the batch
FAST = ("siglip ignore", "unicl")
METHODS = [*FAST, *(slow(method) for method in PAIR_METHODS if method not in FAST)]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=atol, msg=f"{name} differs")


def without_ties(found: dict[str, Tensor], method: str) -> dict[str, Tensor]:
    """Without the accuracy of `siglip`, whose negatives include equal captions: rounding decides between these."""
    return {name: value for name, value in found.items() if method != "siglip" or name != "term.siglip_acc"}


@pytest.mark.parametrize("method", METHODS)
def test_every_split_over_micro_batches_and_two_ranks_equals_the_whole_batch(two_ranks: Ranks, method: str):
    whole = without_ties(step_gradients(method, True, GLOBAL_BATCH, WHOLE), method)
    for tile in TILES:
        for sizes in IN_ONE_PROCESS:
            found = step_gradients_in_tiles(tile, method, True, GLOBAL_BATCH, sizes)
            assert_equal(without_ties(found, method), whole)
        for sizes in ON_TWO_RANKS:
            for rank in two_ranks(step_gradients_in_tiles, tile, method, True, GLOBAL_BATCH, sizes):
                assert_equal(without_ties(rank, method), whole)


@pytest.mark.slow
def test_three_ranks_equal_the_whole_batch():
    ranks = Ranks(3)
    for method in PAIR_METHODS:
        for gather_with_grad in (True, False):
            whole = without_ties(step_gradients(method, gather_with_grad, 15, [15]), method)
            for tile in TILES:
                for sizes in ([5], [2, 3], [1, 1, 1, 1, 1]):
                    for rank in ranks(step_gradients_in_tiles, tile, method, gather_with_grad, 15, sizes):
                        assert_equal(without_ties(rank, method), whole)
    ranks.close()


@pytest.mark.parametrize("method", [slow(method) for method in PAIR_METHODS])
def test_weights_after_20_steps_are_equal_for_all_splits(two_ranks: Ranks, method: str):
    atol = 1e-7  # biases whose true gradient is zero begin at zero and move by AdamW's share of rounding noise
    whole = state_after(20, None, method, True, 20, [20])
    for tile in TILES:
        assert_equal(state_after(20, tile, method, True, 20, [5, 3, 6, 2, 4]), whole, atol)
        for rank in two_ranks(state_after, 20, tile, method, True, 20, [3, 1, 2, 3, 1]):
            assert_equal(rank, whole, atol)


def test_equal_captions_change_the_loss_of_this_batch():
    # The batch has equal captions on both ranks, so the tests above can fail.
    losses = {method: step_gradients(method, True, GLOBAL_BATCH, WHOLE)["term.loss"].item() for method in PAIR_METHODS}
    assert len({round(loss, 6) for loss in losses.values()}) == len(losses)


def test_equal_captions_as_positives_change_nothing_in_clip_but_the_accuracy():
    # Equal captions have equal text features, so a mean over them is the term of one of them.
    positive, negative = (step_gradients(f"clip {same}", True, 12, WHOLE) for same in ("positive", "negative"))
    assert positive.pop("term.clip_acc") >= negative.pop("term.clip_acc")
    assert_equal(positive, negative)
