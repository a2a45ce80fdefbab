"""Several datasets as one source."""

from pathlib import Path

import pytest
from shard_files import write_pairs

from openslip.data.source import Source
from openslip.data.sources.mixture import Mixture
from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Source]:
    write_pairs(tmp_path / "a.tar", 4)
    write_pairs(tmp_path / "b-0.tar", 3, first=10)
    write_pairs(tmp_path / "b-1.tar", 2, first=13)
    return {
        "a": ShardSource(shards=str(tmp_path / "a.tar"), require="caption"),
        "b": ShardSource(shards=f"{tmp_path}/b-{{0,1}}.tar", require="caption"),
    }


def test_samples_are_those_of_the_sources_in_turn(sources: dict[str, Source]):
    mixture = Mixture(sources=sources, weights={"a": 1, "b": 0.5})
    labels = [mixture[index].label for index in range(len(mixture))]
    assert labels == [0, 1, 2, 3, 10, 11, 12, 13, 14]
    assert [collection.parts.tolist() for collection in mixture.collections] == [[4], [3, 2]]
    assert [collection.weight for collection in mixture.collections] == [1, 0.5]
    mixture.prefetch(8)


def test_a_mixture_of_mixtures_multiplies_the_weights(sources: dict[str, Source]):
    inner = Mixture(sources=sources, weights={"a": 1, "b": 0.5})
    outer = Mixture(sources={"inner": inner, "again": sources["a"]}, weights={"inner": 0.5, "again": 1})
    assert [collection.weight for collection in outer.collections] == [0.5, 0.25, 1]


def test_a_mixture_expects_what_its_sources_expect(sources: dict[str, Source]):
    assert Mixture(sources=sources, weights={"a": 1, "b": 1}).expected_samples is None
    for number, source in enumerate(sources.values(), start=1):
        source.expected_samples = number
    assert Mixture(sources=sources, weights={"a": 1, "b": 1}).expected_samples == 3


def test_the_fingerprint_changes_with_sources_and_weights(sources: dict[str, Source]):
    prints = {
        Mixture(sources=sources, weights={"a": 1, "b": 0.5}).fingerprint,
        Mixture(sources=sources, weights={"a": 1, "b": 1}).fingerprint,
        Mixture(sources={"a": sources["b"], "b": sources["a"]}, weights={"a": 1, "b": 0.5}).fingerprint,
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1}, r"weights names a, data.source.sources a, b"),
        ({"a": 1, "b": 1, "c": 1}, r"weights names a, b, c"),
        ({"a": 1, "b": 2.0}, r"weights.b=2.0: expected a share of 0 to 1; .* give their source several names"),
        ({"a": -1, "b": 1}, r"weights.a=-1"),
    ],
)
def test_weights_that_make_no_sense_are_named(sources: dict[str, Source], weights: dict, message: str):
    with pytest.raises(UserError, match=message):
        Mixture(sources=sources, weights=weights)
