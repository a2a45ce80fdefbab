"""The order of samples as a pure function of (seed, epoch), and the randomness of a sample."""

import pickle

import numpy as np
import pytest

from openslip.data.order import Order, Randomness, permutation
from openslip.data.source import Collection
from openslip.errors import UserError


def order(
    *parts: list[int], weights: list[float] | None = None, batch: int = 10, seed: int = 0, window: int = 4
) -> Order:
    collections = tuple(
        Collection(np.array(lengths), weight)
        for lengths, weight in zip(parts, weights or [1.0] * len(parts), strict=True)
    )
    return Order(collections=collections, global_batch_size=batch, seed=seed, shuffle_window=window)


def epoch_of(which: Order, epoch: int) -> np.ndarray:
    return np.concatenate([which.global_batch(epoch, step) for step in range(which.steps_per_epoch)])


@pytest.mark.parametrize("parts", [[103], [10, 50, 1, 42], [1] * 103, [100, 3], [0, 60, 0, 43, 0]])
def test_every_sample_once_per_epoch_but_for_the_tail(parts: list[int]):
    which = order(parts, seed=5)
    assert (which.num_samples, which.steps_per_epoch, which.dropped) == (103, 10, 3)
    for epoch in range(3):
        seen = epoch_of(which, epoch).tolist()
        assert len(set(seen)) == 100
        assert set(seen) <= set(range(103))


def test_two_epochs_and_two_seeds_differ_in_almost_every_position():
    first, second = (epoch_of(order([1000] * 10, batch=100), epoch) for epoch in (0, 1))
    other = epoch_of(order([1000] * 10, batch=100, seed=1), 0)
    assert (first != second).mean() > 0.99
    assert (first != other).mean() > 0.99
    assert np.array_equal(first, epoch_of(order([1000] * 10, batch=100), 0))


def test_the_order_is_the_one_that_runs_of_earlier_versions_resume():
    which = order([7, 5, 6], [4, 3], weights=[1.0, 0.5], batch=5, seed=3)
    assert epoch_of(which, 1).tolist() == [
        0,
        4,
        5,
        6,
        3,
        8,
        10,
        19,
        2,
        7,
        24,
        20,
        9,
        18,
        1,
        11,
        12,
        16,
        13,
        14,
    ]  # recorded


def test_any_step_is_found_without_those_before_it():
    parts = [7, 30, 1, 12, 50, 3, 3, 60, 25]
    whole = epoch_of(order(parts, batch=6, window=3), 2).reshape(-1, 6)
    for step in np.random.default_rng(0).permutation(len(whole)).tolist():
        assert np.array_equal(order(parts, batch=6, window=3).global_batch(2, step), whole[step])


def test_samples_are_shuffled_within_windows_of_whole_parts():
    seen = epoch_of(order([10] * 12, batch=5, window=3), 0)
    windows = [set((window // 10).tolist()) for window in seen.reshape(4, 30)]
    assert [len(parts) for parts in windows] == [3, 3, 3, 3]
    assert set.union(*windows) == set(range(12))
    assert all((np.diff(window) == 1).mean() < 0.3 for window in seen.reshape(4, 30))


def test_a_single_window_is_a_shuffle_of_everything():
    """Every sample is as likely in every tenth of the epoch (chi-squared over 200 seeds)."""
    counts = np.zeros((20, 10))
    for seed in range(200):
        seen = epoch_of(order([5, 15], batch=1, seed=seed), 0)
        for position, sample in enumerate(seen):
            counts[sample, position // 2] += 1
    chi_squared = ((counts - 20) ** 2 / 20).sum()
    assert chi_squared < 19 * 9 + 4 * np.sqrt(2 * 19 * 9)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_ranks_parts_are_the_global_batch_in_order(world_size: int):
    which = order([20, 30], batch=12)
    for step in range(which.steps_per_epoch):
        together = np.concatenate([which.rank_batch(1, step, rank, world_size) for rank in range(world_size)])
        assert np.array_equal(together, which.global_batch(1, step))


def test_a_batch_that_the_ranks_do_not_divide_is_refused():
    with pytest.raises(UserError, match="global_batch_size=10 cannot be divided among 4 ranks: use 8"):
        order([50]).rank_batch(0, 0, 0, 4)


def test_a_batch_that_does_not_fit_the_dataset_is_refused():
    with pytest.raises(
        UserError, match="global_batch_size=51 is more than the dataset's 50 samples: add global_batch_size=32, or"
    ):
        order([50], batch=51)


def test_a_window_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"data.shuffle_window=0: expected 1 or more"):
        order([50], window=0)


@pytest.mark.parametrize("weight", [0.5, 0.25, 0.3])
def test_an_epoch_draws_its_share_of_each_collection_without_replacement(weight: float):
    which = order([10] * 8, [7, 13, 20], weights=[weight, 1.0], batch=1)
    drawn = round(weight * 80)
    assert which.num_samples == drawn + 40
    shares = []
    for epoch in range(int(1 / weight)):
        seen = epoch_of(which, epoch)
        assert len(set(seen.tolist())) == len(seen) == drawn + 40
        assert set(range(80, 120)) <= set(seen.tolist())
        shares.append(set(seen[seen < 80].tolist()))
    assert len(set.union(*shares)) == drawn * len(shares)  # epochs do not draw the same until all is drawn
    again = set(epoch_of(which, len(shares)).tolist())
    assert shares[0] != {sample for sample in again if sample < 80}


@pytest.mark.parametrize(("parts", "weight"), [([1000], 0.75), ([500, 500], 0.9), ([10] * 7, 0.4)])
def test_a_share_that_does_not_divide_a_collection_leaves_nobody_out_for_long(parts: list[int], weight: float):
    which = order(parts, weights=[weight], batch=1)
    counts = np.zeros(sum(parts))
    for epoch in range(40):
        seen = epoch_of(which, epoch)
        assert len(set(seen.tolist())) == len(seen) == round(weight * sum(parts))
        counts[seen] += 1
    assert abs(counts.mean() - 40 * weight) < 1
    assert counts.min() > 40 * weight / 2


def test_a_weight_that_draws_nothing_is_named():
    with pytest.raises(UserError, match=r"weight of 0.0001 draws none of a dataset's 50 samples"):
        order([50], [100], weights=[0.0001, 1.0])


def test_collections_are_mixed_in_every_window():
    seen = epoch_of(order([10] * 50, [10] * 50, batch=10, window=10), 0)
    of_first = (seen.reshape(10, 100) < 500).mean(axis=1)
    assert np.abs(of_first - 0.5).max() <= 0.4


def test_a_collection_of_weight_0_is_left_out():
    which = order([10], [30], weights=[0.0, 1.0])
    assert set(epoch_of(which, 0).tolist()) == set(range(10, 40))


def test_parts_are_announced_before_they_are_read_and_none_is_left_out():
    which = order([10] * 12, batch=5, window=3)
    near: set[int] = set()
    for step in range(which.steps_per_epoch):
        ahead = which.read_ahead(0, step)
        assert len(ahead) <= 6  # its window and the next
        near |= set(ahead)
        assert set((which.global_batch(0, step) // 10 * 10).tolist()) <= set(ahead)
    assert set(range(0, 120, 10)) <= near
    wide = order([10] * 12, batch=45, window=3)  # a batch of more than a window
    assert set((wide.global_batch(0, 1) // 10 * 10).tolist()) <= set(wide.read_ahead(0, 1))
    first_of_next = which.segments(1).starts[:3].tolist()
    assert set(which.read_ahead(0, which.steps_per_epoch - 1)) >= set(first_of_next)


def test_a_sample_knows_its_part_and_its_collection():
    which = order([10, 5], [0, 20])
    assert [which.collection_of(sample) for sample in (0, 14, 15, 34)] == [(0, 15), (0, 15), (15, 35), (15, 35)]
    assert [which.part_of(sample) for sample in (0, 9, 10, 14, 15, 34)] == [
        *[(0, 10), (0, 10), (10, 15), (10, 15), (15, 35), (15, 35)]
    ]


def test_permutations_are_what_they_were_when_they_were_recorded():
    """The raw bits of Philox are stable; a change here would continue old runs with other samples."""
    assert permutation(8, 0, 0, 0, 1 << 32).tolist() == [5, 2, 3, 0, 7, 4, 1, 6]
    assert sorted(permutation(1000, 3, 1, 2, 2 << 32).tolist()) == list(range(1000))


def test_an_order_is_sent_to_workers_without_what_it_has_drawn():
    which = order([100_000])
    before = which.global_batch(3, 7)
    sent = pickle.dumps(which)
    assert len(sent) < 2000
    assert np.array_equal(pickle.loads(sent).global_batch(3, 7), before)


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
