"""The queue of neighbours against a list: what it holds after each push, and which feature is nearest."""

import pytest
import torch
from torch import Tensor

from openslip.errors import UserError
from openslip.objectives import neighbour_queue
from openslip.objectives.neighbour_queue import NeighbourQueue
from openslip.objectives.similarity import unit_length

SIZE, WIDTH = 7, 3
NOT_SKIPPED, SKIPPED = torch.tensor(False), torch.tensor(True)


def rows(seed: int, count: int) -> Tensor:
    return unit_length(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)))


def queue(*, wraps: bool) -> NeighbourQueue:
    torch.manual_seed(0)
    return NeighbourQueue(size=SIZE, width=WIDTH, wraps=wraps)


def expected(before: Tensor, pushes: list[Tensor], *, wraps: bool) -> tuple[list[list[float]], int]:
    """Write one row after the other, as the README of the recordings says."""
    ring, place = before.tolist(), 0
    for pushed in pushes:
        start = place
        for row in pushed.tolist():
            if place < SIZE:
                ring[place] = row
            place += 1
            if wraps:
                place %= SIZE
        if not wraps:
            place = 0 if start + len(pushed) >= SIZE else place
    return ring, place


@pytest.mark.parametrize("wraps", [True, False])
@pytest.mark.parametrize("counts", [[3], [7], [3, 4, 2], [4, 4, 4], [5, 5], [9], [3, 16, 2]])
def test_pushes_write_what_a_loop_writes(wraps: bool, counts: list[int]):
    held = queue(wraps=wraps)
    before, pushes = held.features.clone(), [rows(seed, count) for seed, count in enumerate(counts)]
    for pushed in pushes:
        held.push(pushed, NOT_SKIPPED)
    ring, place = expected(before, pushes, wraps=wraps)
    assert held.features.tolist() == ring
    assert int(held.place) == place


@pytest.mark.parametrize("wraps", [True, False])
def test_a_skipped_step_changes_nothing(wraps: bool):
    held = queue(wraps=wraps)
    held.push(rows(0, 5), NOT_SKIPPED)
    before = {name: x.clone() for name, x in held.state_dict().items()}
    held.push(rows(1, 5) * torch.nan, SKIPPED)
    torch.testing.assert_close(dict(held.state_dict()), before, rtol=0, atol=0)
    assert set(before) == {"features", "place"}  # both are in every checkpoint


def test_the_nearest_feature_has_the_largest_cosine(monkeypatch: pytest.MonkeyPatch):
    held, queries = queue(wraps=True), rows(3, 20)
    cosines = [[float(query @ feature) for feature in held.features] for query in queries]
    places = [max(range(SIZE), key=row.__getitem__) for row in cosines]
    assert held.nearest_places(queries).tolist() == places
    monkeypatch.setattr(neighbour_queue, "MOST_COSINES", 3 * SIZE)  # three queries at a time
    assert held.nearest_places(queries).tolist() == places
    torch.testing.assert_close(held.nearest(queries, 0.0), held.features[places], rtol=1e-6, atol=0)


def test_features_are_rounded_to_float32_even_in_float64():
    held, pushed = queue(wraps=True).double(), rows(4, 2).double() + 1e-12
    held.push(pushed, NOT_SKIPPED)
    assert held.features.dtype == torch.float64
    assert torch.equal(held.features[:2], pushed.float().double())


def test_a_queue_without_places_is_refused():
    with pytest.raises(UserError, match="text_queue=0: expected at least 1"):
        NeighbourQueue(size=0, width=4, wraps=True)
