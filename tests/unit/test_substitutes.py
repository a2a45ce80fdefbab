"""Which samples take the place of those that cannot be used."""

from typing import Any

import numpy as np
import pytest
from data_modules import data_module
from numbered import Numbered
from views import caption_view, crop_view

from openslip.data.source import Collection, Sample
from openslip.data.view import View
from openslip.errors import DataError

IMAGE: dict[str, View] = {"image": crop_view(16, (0.5, 1.0))}


class Sharded(Numbered):
    """60 samples in shards of 20; some have no caption."""

    def __init__(self, bad: set[int], silent: set[int] | None = None) -> None:
        super().__init__(60, bad)
        self.silent = silent or set()

    def __getitem__(self, index: int, /) -> Sample:
        sample = super().__getitem__(index)
        return Sample(sample.key, sample.image, () if index in self.silent else sample.captions, None)

    @property
    def collections(self) -> tuple[Collection, ...]:
        return (Collection(np.array([20, 20, 20]), 1.0),)


def epoch(source: Sharded, views: dict[str, View] = IMAGE) -> list[dict[str, Any]]:
    return list(data_module(source, views=views).train_dataloader())


def used(batches: list[dict[str, Any]]) -> list[int]:
    return [index for batch in batches for index in batch["index"].tolist()]


def replaced(batches: list[dict[str, Any]]) -> dict[int, str]:
    return {bad.sample: bad.substitute for batch in batches for bad in batch["notes"].bad}


def test_a_substitute_comes_from_the_shard_that_is_open():
    """Nearly all of shard 1 is left, so that one of the first five attempts finds one there."""
    substitutes = replaced(epoch(Sharded({21, 25, 38})))
    assert substitutes.keys() == {21, 25, 38}
    assert all(20 <= int(key[1:]) < 40 for key in substitutes.values())


def test_of_a_shard_without_any_usable_sample_others_take_the_place():
    substitutes = replaced(epoch(Sharded(set(range(20, 40)))))
    assert substitutes.keys() == set(range(20, 40))
    assert not any(20 <= int(key[1:]) < 40 for key in substitutes.values())


def test_the_index_of_a_batch_is_that_of_the_sample_which_was_used():
    """Equal indices mark equal pairs for a loss: the substitute's is the one that matters."""
    sound, broken = epoch(Sharded(set())), epoch(Sharded({3, 30, 44}))
    substitutes = replaced(broken)
    wanted = [int(substitutes[index][1:]) if index in substitutes else index for index in used(sound)]
    assert len(substitutes) == 3
    assert used(broken) == wanted


def test_a_sample_without_a_caption_is_replaced_where_a_view_needs_one():
    source = Sharded(set(), silent={5, 6, 59})
    assert replaced(epoch(source, views=IMAGE | {"text": caption_view()})).keys() == {5, 6, 59}
    assert not replaced(epoch(source))


def test_samples_that_none_can_replace_end_the_training():
    with pytest.raises(DataError, match="nor could 10 samples be used in its place"):
        epoch(Sharded(set(range(60))))
