"""A signal to one of two ranks in an evaluation that a resumed run makes before its first step."""

import csv
from pathlib import Path

import pytest
from marks import slow
from shard_files import write_pairs
from trainings import SMALL, steps_saved, two_ranks

RUN = [
    *(word for word in SMALL if word != "evaluation=none"),
    *("evaluation=none", "trainer.max_steps=13", "data.source.shards=0.tar", "+evaluation.long.every_n_epochs=2"),
    *("+evaluation.long._target_=disturbances.LongEvaluation", "+evaluation.long.source.shards=0.tar"),
    *(
        "+evaluation.long.source._target_=openslip.data.sources.shards.ShardSource",
        "+evaluation.long.source.require=label",
    ),
]


def run(place: Path, name: str, **environment: str) -> list[int]:
    """The exit codes of both ranks."""
    return [rank.wait() for rank in two_ranks(place, *RUN, f"name={name}", log=f"{name}-", **environment)]


@pytest.mark.parametrize("step", [slow(12), 13])  # with a step left, and with none
def test_both_ranks_leave_together_and_the_run_can_be_finished(tmp_path: Path, step: int):
    write_pairs(tmp_path / "0.tar", 100)
    if step == 13:
        assert run(tmp_path, "cut", DISTURB="evaluation 2 1") == [143, 143]
        assert run(tmp_path, "cut", DISTURB="signal 13 0") == [143, 143]
    for _ in range(2):  # in the step's own evaluation where it is due, then in that of the resumed run
        assert run(tmp_path, "cut", DISTURB="evaluation 2 1") == [143, 143]
        assert steps_saved(tmp_path / "runs" / "cut")[0] == step
    assert "no step was made" not in (tmp_path / "cut-1").read_text()
    assert run(tmp_path, "cut") == [0, 0]
    with (tmp_path / "runs" / "cut" / "metrics.csv").open() as file:
        evaluated = [row["step"] for row in csv.DictReader(file) if row["eval/long/sum"]]
    assert evaluated == ["12", "13"]
