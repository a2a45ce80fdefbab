"""What could not be used is written down once, and a budget ends the run."""

import json
from pathlib import Path

import pytest

from openslip.data.bad_samples import BadSample, BadSamples
from openslip.errors import DataError


def bad(number: int) -> BadSample:
    return BadSample(number, f"shard.tar:{number}", f"shard.tar:{number}: cannot be decoded", "shard.tar:0")


def test_every_bad_sample_is_one_line(tmp_path: Path):
    record = BadSamples(tmp_path / "bad.jsonl", budget=0.5, samples_per_epoch=10)
    record.record(0, 3, [bad(1), bad(2)])
    record.record(0, 4, [])
    record.record(1, 0, [bad(1)])
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"], line["sample"]) for line in lines] == [(0, 3, 1), (0, 3, 2), (1, 0, 1)]
    assert lines[0]["key"] == "shard.tar:1"
    assert lines[0]["substitute"] == "shard.tar:0"
    assert record.total == 3


def test_more_than_the_budget_in_one_epoch_ends_the_run(tmp_path: Path):
    record = BadSamples(tmp_path / "bad.jsonl", budget=0.02, samples_per_epoch=100)
    for epoch in range(3):
        record.record(epoch, 0, [bad(1), bad(2)])
    with pytest.raises(DataError, match=r"3 bad samples in epoch 2, 2 allowed \(data.bad_sample_budget=0.02\), listed"):
        record.record(2, 1, [bad(3)])
    assert DataError.exit_code == 4
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 7  # the last one, too


def test_lines_of_steps_that_are_made_again_are_dropped(tmp_path: Path):
    file = tmp_path / "bad.jsonl"
    record = BadSamples(file, budget=0.5, samples_per_epoch=6)
    for step in (1, 4, 7):
        record.record(0, step, [bad(step)])
    with file.open("a") as stream:
        stream.write('{"epoch": 0, "st')  # a crash
    again = BadSamples(file, budget=0.5, samples_per_epoch=6)
    again.cut_back(0, 5)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 4]
    assert again.total == 2
    with pytest.raises(DataError, match="4 bad samples in epoch 0, 3 allowed"):
        again.record(0, 5, [bad(5), bad(6)])
