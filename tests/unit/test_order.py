"""The order of samples as a pure function of (seed, epoch), and the randomness of a sample."""

import pickle

import numpy as np
import pytest

from openslip.data.order import Order, Randomness
from openslip.errors import UserError


def test_every_sample_once_per_epoch_but_for_the_tail():
    order = Order(num_samples=103, global_batch_size=10, seed=5)
    assert (order.steps_per_epoch, order.dropped) == (10, 3)
    for epoch in range(3):
        seen = np.concatenate([order.global_batch(epoch, step) for step in range(10)])
        assert len(set(seen.tolist())) == 100
        assert set(seen.tolist()) <= set(range(103))


def test_batches_depend_on_seed_and_epoch_alone():
    def plan(seed: int, epoch: int) -> np.ndarray:
        order = Order(num_samples=10_000, global_batch_size=100, seed=seed)
        return np.concatenate([order.global_batch(epoch, step) for step in (0, 50, 99)])

    assert np.array_equal(plan(0, 0), plan(0, 0))
    assert (plan(0, 0) != plan(0, 1)).mean() > 0.99
    assert (plan(0, 0) != plan(1, 0)).mean() > 0.99


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_ranks_parts_are_the_global_batch_in_order(world_size: int):
    order = Order(num_samples=50, global_batch_size=12, seed=0)
    parts = [order.rank_batches(1, rank, world_size) for rank in range(world_size)]
    for step in range(order.steps_per_epoch):
        together = np.concatenate([part[step] for part in parts])
        assert np.array_equal(together, order.global_batch(1, step))


def test_a_batch_that_the_ranks_do_not_divide_is_refused():
    order = Order(num_samples=50, global_batch_size=10, seed=0)
    with pytest.raises(UserError, match="global_batch_size=10 cannot be divided among 4 ranks: use 8"):
        order.rank_batches(0, 0, 4)


@pytest.mark.parametrize("global_batch_size", [51, 0, -1])
def test_a_batch_that_does_not_fit_the_collection_is_refused(global_batch_size: int):
    with pytest.raises(UserError, match=f"global_batch_size={global_batch_size}"):
        Order(num_samples=50, global_batch_size=global_batch_size, seed=0)


def test_random_numbers_depend_on_seed_epoch_sample_and_view_alone():
    places = [(0, 0, 0, "a"), (1, 0, 0, "a"), (0, 1, 0, "a"), (0, 0, 1, "a"), (0, 0, 0, "b")]
    drawn = [Randomness(seed)(epoch, index, view).random(4).tolist() for seed, epoch, index, view in places]
    assert len({tuple(numbers) for numbers in drawn}) == len(places)

    randomness = pickle.loads(pickle.dumps(Randomness(0)))
    randomness(7, 7, "other").integers(5, dtype=np.uint32)  # leaves half a word behind
    assert randomness(0, 1, "a").random(4).tolist() == drawn[3]


def test_random_numbers_are_those_of_a_generator_made_for_the_place():
    counter = [0, 12, 3, 0xE8B7BE43]  # the CRC-32 of "a"
    made = np.random.Generator(np.random.Philox(key=5, counter=counter))
    assert Randomness(5)(3, 12, "a").random(100).tolist() == made.random(100).tolist()
