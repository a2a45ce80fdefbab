"""`openslip reproduce published`: the files found, their rows beside the published ones, and what is computed again."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published_files import DIMS, training_checkpoint
from reference_folder import initial_state

from openslip.__main__ import run
from openslip.commands._published_files import Outcome, outcome_from
from openslip.inference.published import TABLE, published

CLASSES = ("n02206856", "n02219486", "n01440764")  # bee, ant, tench


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two models with text and one without, under published names, a file that is none, and 12 images of ImageNet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights, imagenet = tmp_path / "weights", tmp_path / "imagenet"
    weights.mkdir()
    torch.manual_seed(0)
    for name, method in (("slip_base_25ep", "slip"), ("clip_small_25ep", "clip"), ("simclr_base_25ep", "simclr")):
        state = {key: tensor.detach() for key, tensor in initial_state(method, DIMS).items()}
        torch.save(training_checkpoint(state, argparse.Namespace(model=method)), weights / f"{name}.pt")
    (weights / "slip_large_25ep.pt").write_text("the beginning of a download")
    (weights / "notes.pt").write_text("no published name")
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (imagenet / "val" / name).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(imagenet / "val" / name / f"{number}.jpg")
    return weights, imagenet


def reproduce(weights: Path, imagenet: Path) -> int:
    return run(["reproduce", "published", "--weights", str(weights), "--imagenet", str(imagenet)])


def test_each_published_file_is_a_row_beside_the_published_accuracy(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    weights, imagenet = folders
    assert reproduce(weights, imagenet) == 1
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    rows = {words[0]: words[1:] for words in map(str.split, re.findall(r"^  \w+ep .*", printed, re.MULTILINE))}
    assert set(rows) == {"slip_base_25ep", "clip_small_25ep", "simclr_base_25ep", "slip_large_25ep"}
    assert rows["slip_base_25ep"][1] == "42.80"
    assert rows["clip_small_25ep"][1] == "32.70"
    assert rows["simclr_base_25ep"] == ["-", "-", "no", "text", "tower"]
    assert rows["slip_large_25ep"] == ["-", "46.20", "NOT", "CONFIRMED"]
    assert "not comparable: 3 of 1000 classes" in printed
    assert "4 of the 19 published files" in printed

    monkeypatch.setenv("IMAGENET", str(imagenet))
    settings = [f"checkpoint={weights}/slip_base_25ep.pt", "evaluation=imagenet", "evaluation.imagenet.num_workers=0"]
    assert run(["eval", *settings, f"output={weights}/other.json"]) == 0
    alone = json.loads((weights / "other.json").read_text())["metrics"]["imagenet"]
    stored = json.loads((weights / "slip_base_25ep.pt-evaluations" / "imagenet.json").read_text())
    assert stored["metrics"] == alone
    assert rows["slip_base_25ep"][0] == f"{alone['top1']:.2f}"
    capsys.readouterr()

    def computed(*arguments: Any, **options: Any) -> None:
        raise AssertionError("images are encoded again")

    monkeypatch.setattr("openslip.evaluation.zeroshot.joint_features", computed)
    assert reproduce(weights, imagenet) == 1
    again = capsys.readouterr().out
    assert again.split("ImageNet zero-shot")[1] == printed.split("ImageNet zero-shot")[1]

    (weights / "clip_small_25ep.pt-evaluations" / "imagenet.json").unlink()  # as after a kill before it was written
    assert reproduce(weights, imagenet) == 1
    assert "images are encoded again" in capsys.readouterr().out


def record(top1: float, **notes: str) -> dict[str, Any]:
    return {"metrics": {"top1": top1}, "notes": notes, "problems": []}


@pytest.mark.parametrize(
    ("top1", "is_confirmed"),
    [(top1, True) for top1 in (42.7, 42.72, 42.8, 42.89, 42.9)] + [(top1, False) for top1 in (42.91, 42.69, 42.6, 0.1)],
)
def test_an_accuracy_is_confirmed_within_a_tenth_of_a_point(top1: float, is_confirmed: bool):
    outcome = outcome_from(published(TABLE)["slip_base_25ep"], record(top1))
    assert (outcome.is_confirmed, outcome.has_failed) == (is_confirmed, not is_confirmed)
    assert next(outcome.lines()).endswith("ok" if is_confirmed else "NOT CONFIRMED")


@pytest.mark.parametrize("note", [{"classes": "100 of 1000"}, {"samples": "49000 of 50000"}])
def test_an_accuracy_on_a_part_of_imagenet_confirms_nothing(note: dict[str, str]):
    outcome = outcome_from(published(TABLE)["slip_base_25ep"], record(42.8, **note))
    assert (outcome.is_confirmed, outcome.has_failed) == (False, True)


def test_a_file_without_a_published_accuracy_must_only_load():
    file = published(TABLE)["simclr_base_25ep"]
    assert not Outcome(file).has_failed
    assert Outcome(file, problem="no such file").has_failed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "W"], "needs --weights DIR and --imagenet DIR"),
        (["--weights", "none", "--imagenet", "I"], "--weights none: no such folder; expected one that holds"),
        (["--weights", "EMPTY", "--imagenet", "I"], "has no published file, such as clip_small_25ep.pt"),
        (["--weights", "W", "--imagenet", "none"], "--imagenet none: no such folder; expected ImageNet's folder"),
    ],
)
def test_missing_folders_are_named(
    words: list[str], said: str, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    weights, imagenet = folders
    places = {"W": str(weights), "I": str(imagenet), "EMPTY": str(imagenet)}
    assert run(["reproduce", "published", *(places.get(word, word) for word in words)]) == 1
    assert said in capsys.readouterr().err
