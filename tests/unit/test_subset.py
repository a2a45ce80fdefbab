"""A few samples of a dataset, for trial evaluations."""

import pytest
from numbered import Numbered

from openslip.config.build import build_evaluations
from openslip.data.sources.subset import Subset


def test_samples_are_evenly_spaced_and_the_loss_is_stated():
    subset = Subset(Numbered(10), 4)
    assert [subset[index].key for index in range(len(subset))] == ["s0", "s2", "s5", "s7"]
    assert subset.problems == ("only 4 of 10 samples are used",)
    assert subset.fingerprint != Subset(Numbered(10), 5).fingerprint != Numbered(10).fingerprint


@pytest.mark.parametrize(("num_samples", "size"), [(None, 10), (20, 10), (10, 10), (4, 4)])
def test_evaluations_use_as_many_samples_as_asked_for(num_samples: int | None, size: int):
    source = {"_target_": "numbered.Numbered", "size": 10}
    settings = {"_target_": "openslip.evaluation.retrieval.Retrieval", "source": source, "title": "x"}
    evaluation = build_evaluations({"x": {**settings, "batch_size": 2, "num_workers": 0}}, num_samples)["x"]
    assert len(vars(evaluation)["source"]) == size
    assert evaluation.problems() == (["only 4 of 10 samples are used"] if size == 4 else [])
