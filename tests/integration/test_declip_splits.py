"""DeCLIP and its relatives in the correct mode: any split of the global batch makes the same update and queue."""

import itertools
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from declip_models import FAITHFUL
from declip_on_ranks import state_of_steps, steps_of_a_run
from marks import slow
from ranks import Ranks
from torch import Tensor

from openslip.errors import UserError

GLOBAL_BATCH, STEPS, TILE = 18, 2, 5
METHODS = ("declip", "declip_slip", "defilip")
FEW = [("declip", None), ("defilip", TILE)]
SIZES = {1: ([18], [7, 11], [5, 3, 6, 2, 2]), 2: ([9], [4, 5], [3, 1, 2, 2, 1]), 3: ([6], [2, 4], [1, 2, 1, 1, 1])}


@pytest.fixture(scope="module")
def three_ranks() -> Iterator[Ranks]:
    ranks = Ranks(3)
    yield ranks
    ranks.close()


def assert_equal(found: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9, msg=f"{name} differs")


@pytest.mark.parametrize(
    ("method", "tile"), [case if case in FEW else slow(*case) for case in itertools.product(METHODS, [None, TILE])]
)
def test_micro_batches_equal_the_whole_batch(method: str, tile: int | None):
    whole = state_of_steps(STEPS, method, GLOBAL_BATCH, [GLOBAL_BATCH])
    for sizes in SIZES[1]:
        assert_equal(state_of_steps(STEPS, method, GLOBAL_BATCH, sizes, tile), whole)


@pytest.mark.parametrize(
    ("method", "tile"),
    [("declip", TILE), *(slow(*case) for case in (("declip", None), ("declip_slip", None), ("declip_slip", TILE)))],
)
def test_two_ranks_equal_one_process(two_ranks: Ranks, method: str, tile: int | None):
    whole = state_of_steps(STEPS, method, GLOBAL_BATCH, [GLOBAL_BATCH])
    for sizes in SIZES[2]:
        for rank in two_ranks(state_of_steps, STEPS, method, GLOBAL_BATCH, sizes, tile):
            assert_equal(rank, whole)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [None, TILE])
@pytest.mark.parametrize("method", METHODS)
def test_three_ranks_equal_one_process(three_ranks: Ranks, method: str, tile: int | None):
    whole = state_of_steps(STEPS, method, GLOBAL_BATCH, [GLOBAL_BATCH])
    for sizes in SIZES[3]:
        for rank in three_ranks(state_of_steps, STEPS, method, GLOBAL_BATCH, sizes, tile):
            assert_equal(rank, whole)


def test_the_queue_holds_the_last_captions_of_the_global_batch_and_drops_none():
    # Two steps push 2 x 36 features into 50 places: the ring has gone round once, and stands at 72 - 50.
    state = state_of_steps(STEPS, "declip", GLOBAL_BATCH, [GLOBAL_BATCH])
    assert int(state["objective.queue.place"]) == 2 * 2 * GLOBAL_BATCH - 50


@pytest.mark.parametrize("switches", [FAITHFUL, {}], ids=["published", "correct"])
def test_every_rank_resumes_with_its_own_queue(two_ranks: Ranks, switches: dict):
    whole = two_ranks(partial(steps_of_a_run, **switches), 0, 3, None)
    begun = two_ranks(partial(steps_of_a_run, **switches), 0, 2, None)
    resumed = two_ranks(partial(steps_of_a_run, **switches), 2, 3, begun[0])
    for rank in range(2):
        for part in ("state_dict", "rank_buffers", "own"):
            torch.testing.assert_close(resumed[rank][part], whole[rank][part], rtol=0, atol=0)
    queues = [rank["own"] for rank in whole]
    assert [len(queue) for queue in queues] == ([1, 1] if switches else [0, 0])
    if switches:
        assert not torch.equal(queues[0]["queue"], queues[1]["queue"])
        assert begun[0]["rank_buffers"]["queue"].shape[0] == 2
        with pytest.raises(UserError, match=r"a queue of each of its 2 ranks, but the number of ranks is now 1 \("):
            steps_of_a_run(2, 3, begun[0], **switches)
    else:
        steps_of_a_run(2, 3, begun[0])  # one queue of the global batch serves any number of ranks
