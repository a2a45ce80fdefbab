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
from screens import too_wide

from openslip.__main__ import run
from openslip.commands._published_files import Outcome, outcome_from
from openslip.commands._published_sizes import other_sizes
from openslip.inference.architecture import build_model
from openslip.inference.formats.slip import import_checkpoint
from openslip.inference.published import TABLE, published
from openslip.verify.files import RECORDINGS, read_json

CLASSES = ("n02206856", "n02219486", "n01440764")  # bee, ant, tench


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two models with text and one without, under published names, a file that is none, and 12 images of ImageNet.

    The models are small, and taken for the published ones.
    """
    monkeypatch.setattr("openslip.commands._published_files.other_sizes", lambda model, file: "")
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


def reproduce(weights: Path, imagenet: Path, *settings: str) -> int:
    return run(["reproduce", "published", "--weights", str(weights), "--imagenet", str(imagenet), *settings])


def test_each_published_file_is_a_row_beside_the_published_accuracy(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    weights, imagenet = folders
    assert reproduce(weights, imagenet) == 1
    printed = capsys.readouterr().out
    assert not too_wide(printed, 80)
    rows = {words[0]: words[1:] for words in map(str.split, re.findall(r"^  \w+ep .*", printed, re.MULTILINE))}
    assert set(rows) == {"slip_base_25ep", "clip_small_25ep", "simclr_base_25ep", "slip_large_25ep"}
    assert rows["slip_base_25ep"][1:] == ["42.80", "NOT", "CONFIRMED"]  # no difference of what cannot be compared
    assert rows["clip_small_25ep"][1:] == ["32.70", "NOT", "CONFIRMED"]
    assert rows["simclr_base_25ep"] == ["-", "-", "no", "text", "tower"]
    assert rows["slip_large_25ep"] == ["-", "46.20", "NOT", "CONFIRMED"]
    assert "not comparable: 3 of 1000 classes, 12 of 50000 images\n" in printed
    assert "0 of 3 files with text are within 0.1 points of the published accuracy\n3 of 4 files failed" in printed

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
    assert capsys.readouterr().out.count("images are encoded again") == 1
    assert reproduce(weights, imagenet, "again=true") == 1
    assert capsys.readouterr().out.count("images are encoded again") == 2


def test_the_sizes_of_published_models_are_those_of_their_names():
    for model, name in (("SLIP_VITS16", "slip_small_25ep"), ("SIMCLR_VITB16", "simclr_base_25ep")):
        shapes = read_json(RECORDINGS / "official_models.json")[model]["state"]
        with torch.device("meta"):
            architecture, _ = import_checkpoint({"state_dict": {key: torch.empty(x) for key, x in shapes.items()}})
            built = build_model(architecture)
        assert other_sizes(built, published(TABLE)[name]) == ""
    assert other_sizes(built, published(TABLE)["clip_small_25ep"]) == (
        "image tower, width: 768, expected 384; image tower, weights: 85798656, expected 21665664; text tower, width: "
        "none, expected 512; text tower, tokens: none, expected 77; text tower, weights: none, expected 63165952"
    )


def test_another_model_under_a_published_name_is_not_evaluated(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    weights, imagenet = folders
    monkeypatch.setattr("openslip.commands._published_files.other_sizes", other_sizes)
    for name in ("simclr_base_25ep", "clip_small_25ep", "slip_large_25ep"):
        (weights / f"{name}.pt").unlink()
    assert reproduce(weights, imagenet) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "slip_base_25ep - 42.80 ANOTHER MODEL slip_base_25ep.pt holds another model than slip_base_25ep:" in printed
    assert "image tower, width: 64, expected 768; image tower, pixels: 32, expected 224;" in printed
    assert not (weights / "slip_base_25ep.pt-evaluations").exists()


def record(top1: float, **notes: str) -> dict[str, Any]:
    return {"metrics": {"top1": top1, "num_samples": 50_000.0}, "notes": notes, "problems": []}


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
        (["--weights", "W"], "needs --imagenet DIR\n"),
        (["--weights", "W/notes.pt", "--imagenet", "I"], "/notes.pt: is a file; give its folder, "),
        (["--weights", "W", "--imagenet", "W"], "has no folders of classes; expected val/ with one folder of images"),
        (["--weights", "W", "--imagenet", "I/hollow"], "/hollow/val/n01440764 is empty, and each class has 50 images"),
        (["--weights", "none", "--imagenet", "I"], "--weights none: no such folder; expected one that holds"),
        (["--weights", "EMPTY", "--imagenet", "I"], "has no published file, such as clip_small_25ep.pt"),
        (["--weights", "W", "--imagenet", "none"], "--imagenet none: no such folder; expected ImageNet's folder"),
    ],
)
def test_missing_folders_are_named(
    words: list[str], said: str, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    weights, imagenet = folders
    (imagenet / "hollow/val/n01440764").mkdir(parents=True)
    places = {"W": str(weights), "I": str(imagenet), "EMPTY": str(imagenet)}
    parts = [word.partition("/") for word in words]
    assert run(["reproduce", "published", *(places.get(place, place) + "".join(more) for place, *more in parts)]) == 1
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""  # no file is loaded first
