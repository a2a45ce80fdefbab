"""What could not be used is written down once, and a budget ends the run."""

import json
from pathlib import Path

import pytest

from openslip.data.bad_samples import BadSample, BadSamples
from openslip.errors import DataError


def bad(number: int) -> BadSample:
    return BadSample(number, f"shard.tar:{number}", f"shard.tar:{number}: cannot be decoded", "shard.tar:0")


def record_of(file: Path, *, rank: int = 0, budget: float = 0.5, samples: int = 10) -> BadSamples:
    return BadSamples(file, rank=rank, budget=budget, samples_per_epoch=samples)


def test_every_bad_sample_is_one_line(tmp_path: Path):
    record = record_of(tmp_path / "bad.jsonl")
    record.record(0, 3, [bad(1), bad(2)])
    record.record(0, 4, [])
    assert record.in_epoch == 2
    record.record(1, 0, [bad(1)])
    assert record.in_epoch == 1
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"], line["sample"]) for line in lines] == [(0, 3, 1), (0, 3, 2), (1, 0, 1)]
    assert lines[0]["key"] == "shard.tar:1"
    assert lines[0]["substitute"] == "shard.tar:0"
    assert record.total() == 3


def test_a_repeated_step_counts_its_bad_samples_once_after_a_resume_too(tmp_path: Path):
    file = tmp_path / "bad.jsonl"
    record = record_of(file)
    for step in (0, 1, 0, 1, 0):  # as with data.overfit_batches=2
        record.record(0, step, [bad(step)])
    assert record.in_epoch == record.total() == 2
    resumed = record_of(file)
    resumed.cut_back(0, 5)
    for step in (1, 0, 1):
        resumed.record(0, step, [bad(step)])
    assert resumed.in_epoch == resumed.total() == 2
    other = record_of(file, rank=1)
    other.cut_back(0, 5)
    other.record(0, 1, [bad(1)])
    assert other.in_epoch == 0


def test_more_than_the_budget_in_one_epoch_ends_the_run(tmp_path: Path):
    record = record_of(tmp_path / "bad.jsonl", budget=0.02, samples=100)
    for epoch in range(3):
        record.record(epoch, 0, [bad(1), bad(2)])
        record.check(record.in_epoch)
    with pytest.raises(DataError, match=r"3 bad samples in epoch 2, 2 allowed \(data.bad_sample_budget=0.02\), listed"):
        record.check(3)
    assert DataError.exit_code == 4
    record_of(tmp_path / "none.jsonl", budget=0.0).check(0)


def test_lines_of_steps_that_are_made_again_are_dropped_for_all_ranks(tmp_path: Path):
    file = tmp_path / "bad.jsonl"
    for rank in range(2):
        for step in (1, 4, 7):
            record_of(file, rank=rank).record(0, step, [bad(step)])
    with file.open("a") as stream:
        stream.write('{"epoch": 0, "st')  # a crash
    again = record_of(file)
    again.cut_back(0, 5)
    for name in ("bad.jsonl", "bad-rank1.jsonl"):
        assert [json.loads(line)["step"] for line in (tmp_path / name).read_text().splitlines()] == [1, 4]
    assert again.total() == again.in_epoch == 4
    other = record_of(file, rank=1)
    other.cut_back(0, 0)
    assert other.total() == 4  # the first rank alone cuts


def test_lines_that_are_no_bad_samples_end_no_run(tmp_path: Path):
    record = record_of(tmp_path / "bad.jsonl")
    record.record(0, 1, [bad(1)])
    with (tmp_path / "bad.jsonl").open("ab") as file:
        file.write(b'\xff\x00\n5\n[]\n{"epoch": 0}\n{"epoch": "x", "step": 1}\n{"epo')
    resumed = record_of(tmp_path / "bad.jsonl")
    resumed.cut_back(0, 2)
    assert (resumed.in_epoch, resumed.total()) == (1, 1)
