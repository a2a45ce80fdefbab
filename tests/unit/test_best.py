"""Which result is the best of a run, and which checkpoint is kept for it."""

import math
import os
from pathlib import Path
from typing import Literal

import pytest
import torch

from openslip.evaluation.evaluation import Evaluation
from openslip.inference.bundle import Bundle
from openslip.inference.files import checkpoint_file, read
from openslip.run.checkpoints import BEST, LINK, damage, file_name, newest_whole, point_best, saved
from openslip.training.best import Best, better
from openslip.training.checkpoint_io import DurableCheckpointIO


class Measured(Evaluation):
    """Has a headline metric of a direction."""

    headline_metric = "height"

    def __init__(self, direction: Literal["higher", "lower"] | None) -> None:
        self.better = direction

    def run(self, bundle: Bundle) -> dict[str, float]:
        raise NotImplementedError


@pytest.mark.parametrize(("direction", "step"), [("higher", 3), ("lower", 2), (None, None)])
def test_the_best_result_is_the_first_that_no_other_beats(
    direction: Literal["higher", "lower"] | None, step: int | None
):
    best = None
    for number, height in enumerate([5.0, 1.0, 9.0, 9.0, 1.0, math.nan], 1):
        best = better(Measured(direction), best, {"other": 100.0 * number, "height": height}, number)
    assert (best and best.step) == step


def test_a_result_without_the_metric_or_of_another_metric_is_no_rival():
    assert better(Measured("higher"), None, {"other": 1.0}, 1) is None
    assert better(Measured("higher"), None, {"height": math.inf}, 1) is None
    former = Best("other", 100.0, 1)
    assert better(Measured("higher"), former, {"height": 2.0}, 7) == Best("height", 2.0, 7)


def test_a_share_is_described_in_per_cent():
    assert Best("top1", 43.126, 300).line() == "best top1 43.13 % at step 300"
    assert Best("loss", 1.23456, 5).line() == "best loss 1.235 at step 5"


def save(folder: Path, step: int) -> None:
    io = DurableCheckpointIO()
    io.save_checkpoint({"openslip": {"step": step}, "weight": torch.full((8,), float(step))}, folder / file_name(step))
    assert io.wait() is None


def steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in saved(folder)]


def test_the_best_checkpoint_outlives_newer_ones_until_another_is_the_best(tmp_path: Path):
    save(tmp_path, 1)
    point_best(tmp_path, 1)
    for step in (2, 3, 4):
        save(tmp_path, step)
    assert steps(tmp_path) == [4, 3, 1]
    assert read(checkpoint_file(tmp_path / BEST))["openslip"]["step"] == 1
    assert damage(saved(tmp_path)[-1]) is None
    point_best(tmp_path, 4)
    save(tmp_path, 5)
    assert steps(tmp_path) == [5, 4]
    save(tmp_path, 6)
    save(tmp_path, 7)
    assert steps(tmp_path) == [7, 6, 4]
    assert os.readlink(tmp_path / LINK) == "step-000007.ckpt"
    assert newest_whole(tmp_path).step == 7, "a run's folder stands for its last checkpoint"


def test_a_best_step_without_a_checkpoint_has_no_link(tmp_path: Path):
    save(tmp_path, 1)
    point_best(tmp_path, 1)
    for step in (9, None):
        point_best(tmp_path, step)
        assert not (tmp_path / BEST).is_symlink()
        point_best(tmp_path, 1)
    (tmp_path / file_name(1)).with_suffix(".json").write_text("{")
    point_best(tmp_path, 1)
    assert not (tmp_path / BEST).is_symlink(), "a checkpoint that cannot be trusted is not kept as the best"


def test_a_file_of_the_links_name_is_not_deleted(tmp_path: Path):
    (tmp_path / BEST).write_text("a copy")
    point_best(tmp_path, None)
    assert (tmp_path / BEST).read_text() == "a copy"
    save(tmp_path, 1)
    assert (tmp_path / BEST).read_text() == "a copy"
