"""`openslip eval` on a folder of images: class names and templates of the command line, the table, what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from evaluation_models import CLASSNAMES, Pictures, bundle, dual_encoder

import openslip.commands.eval as module
from openslip.__main__ import run
from openslip.config.build import build_evaluations
from openslip.config.compose import compose_config
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices, heads
from openslip.inference.config_choices import NAMES
from openslip.inference.imagenet_classes import imagenet_ids
from openslip.inference.imagenet_prompts import imagenet_templates

FOLDERS = ["0", "1", "2", "10"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENSLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "load", lambda path, **_: bundle(dual_encoder()))
    for place, name in enumerate(FOLDERS):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "a.png").write_bytes(Pictures(4)[place].image)
    (tmp_path / "names.txt").write_text("\n".join(CLASSNAMES[:4]))
    (tmp_path / "templates.txt").write_text("a {}.\nthe {}.\n")
    return tmp_path


def evaluate(root: Path, *words: str, evaluation: str = "folder") -> int:
    place = "places.folders.root" if evaluation == "imagenet" else "root"
    source = [f"evaluation.{evaluation}.source.{place}={root}/images", f"evaluation.{evaluation}.num_workers=0"]
    return run(["eval", "checkpoint=X", f"evaluation={evaluation}", *source, f"output={root}/out.json", *words])


def built(words: list[str], name: str = "train") -> Any:
    config, _ = compose_config(name, words)
    return next(iter(build_evaluations(config["evaluation"]).values()))


def test_names_and_templates_of_the_command_line_are_those_of_the_evaluation(root: Path):
    source = ["evaluation=folder", f"evaluation.folder.source.root={root}/images"]
    names = {"names": CLASSNAMES[:4], "templates": ["a {}.", "the {}."]}
    for name, words in (
        ("eval", [f"classnames={root}/names.txt", f"templates={root}/templates.txt"]),
        ("eval", [f"classnames=[{','.join(CLASSNAMES[:4])}]", 'templates=["a {}.","the {}."]']),
        ("eval", [f"evaluation.folder.classnames={root}/names.txt", 'evaluation.folder.templates=["a {}.","the {}."]']),
        (
            "train",
            [f"evaluation.folder.classnames={root}/names.txt", f"evaluation.folder.templates={root}/templates.txt"],
        ),
        (
            "train",
            [
                f"evaluation.folder.classnames=[{','.join(CLASSNAMES[:4])}]",
                'evaluation.folder.templates=["a {}.","the {}."]',
            ],
        ),
    ):
        mine = built([*source, *words, *["checkpoint=X"] * (name == "eval")], name)
        assert {"names": mine.classnames, "templates": mine.templates} == names, words
    assert built([*source, "checkpoint=X", "templates=[a {}.,the {}.]"], "eval").templates == names["templates"]
    for key in ("templates", "evaluation.folder.templates"):
        mine = built([*source, "checkpoint=X", f"{key}=imagenet80"], "eval")
        assert mine.templates == imagenet_templates(80)


def test_every_zero_shot_evaluation_takes_names_of_the_command_line(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root)
    words = ["evaluation=builtin", "checkpoint=X", "templates=imagenet7"]
    config, _ = compose_config("eval", words)
    assert config["evaluation"]["builtin"]["templates"] == "imagenet7"
    for evaluation in ("imagenet", "shards"):
        config, _ = compose_config(
            "eval",
            [
                f"evaluation={evaluation}",
                "checkpoint=X",
                "classnames=names.txt",
                *["evaluation.shards.source.shards=S"] * (evaluation == "shards"),
            ],
        )
        assert config["evaluation"][evaluation]["classnames"] == "names.txt"


def test_several_evaluations_are_a_list_or_a_suite():
    for choice, names in (
        ("[builtin_knn,imagenet]", ["builtin_knn", "imagenet"]),
        ("all", ["builtin", "builtin_knn"]),
        ("[all,imagenet]", ["builtin", "builtin_knn", "imagenet"]),
    ):
        config, _ = compose_config("eval", [f"evaluation={choice}", "checkpoint=X"])
        assert [name for name in config["evaluation"] if name in names] == names
    words = ["evaluation=[builtin,builtin_knn]", "checkpoint=X", "templates=[a {}]", "evaluation.builtin_knn.k=3"]
    config, _ = compose_config("eval", words)
    assert config["evaluation"]["builtin"]["templates"] == ["a {}"]
    assert config["evaluation"]["builtin_knn"]["k"] == 3


def test_whole_numbers_of_the_command_line_are_names(root: Path):
    mine = built(
        ["evaluation=folder", f"evaluation.folder.source.root={root}/images", "checkpoint=X", "classnames=[0,1,2,10]"],
        "eval",
    )
    assert mine.classnames == FOLDERS


def test_metrics_of_an_incomplete_dataset_are_called_that_after_the_table(
    root: Path, capsys: pytest.CaptureFixture[str]
):
    assert evaluate(root) == 0
    assert "repaired dataset" not in capsys.readouterr().out
    (root / "images" / "10" / "b.heic").write_bytes(b"x")
    assert evaluate(root) == 0
    first, *_, last, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("folder: ")
    assert "heic" in first
    assert last == "folder: these metrics are of an incomplete or repaired dataset, as the first lines say"


def test_the_table_has_counts_as_counts_and_shares_in_per_cent(root: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate(root, f"classnames={root}/names.txt", "templates=imagenet80") == 0
    captured = capsys.readouterr()
    assert re.search(r"num_samples +│ 4 +│", captured.out)
    assert re.search(r"chance +│ 25\.00 % +│", captured.out)
    assert re.search(r"top1 +│ [\d.]+ % +│", captured.out)
    assert f"3: 10 -> {CLASSNAMES[3]}" in captured.err
    written = json.loads((root / "out.json").read_text())
    assert written["metrics"]["folder"]["num_samples"] == 4
    used = written["config"]["evaluation"]["folder"]
    assert (used["classnames"], used["templates"]) == (f"{root}/names.txt", "imagenet80")
    assert used["source"]["root"] == f"{root}/images"
    assert "out.json (replaced)" not in captured.out
    assert evaluate(root) == 0
    assert "out.json (replaced)" in capsys.readouterr().out


def test_a_part_of_imagenet_says_so(root: Path, capsys: pytest.CaptureFixture[str]):
    for name, identifier in zip(FOLDERS, list(imagenet_ids())[5:9], strict=True):
        (root / "images" / name).rename(root / "images" / identifier)
    assert evaluate(root, evaluation="imagenet") == 0
    captured = capsys.readouterr()
    assert re.search(r"classes +│ 4 of 1000 +│", captured.out)
    assert re.search(r"ImageNet zero-shot top-1: .* \(chance 25\.0 %\), 4 of 1000 classes", captured.out)
    notes = json.loads((root / "out.json").read_text())["notes"]["imagenet"]
    assert notes == {"source": f"folders: root={root}/images", "classes": "4 of 1000"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classnames=[2,1,0,10]"], "evaluation.folder.classnames: the folders' own names, in another order"),
        (["classnames=[a,b,c]"], "3 names for 4 class folders"),
        (["classnames=nothing.txt"], "evaluation.folder.classnames=nothing.txt: no such file"),
        (["image_size=48"], "image_size is a setting of training"),
        (["+image_size=48"], "image_size is a setting of training"),
        (["mean=[0.5,0.5,0.5]"], "mean is a setting of training"),
        (["+tokenizer=clip"], "tokenizer is a setting of training"),
        (["evaluation.folder.image_size=48"], "image_size is a setting of training"),
        (["+batch=4"], "config key batch is unknown and would be ignored"),
        (["classnames=cat, dog"], r"several values, expected one: .*a list is written classnames=\[cat, dog\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    words: list[str], message: str, root: Path, capsys: pytest.CaptureFixture[str]
):
    assert evaluate(root, *words) == 1
    error = capsys.readouterr().err
    assert re.match(f"error: .*{message}", error)
    assert error.count("\n") == 1


@pytest.mark.parametrize("evaluation", ["none", "builtin_knn"])
def test_names_for_no_zero_shot_evaluation_are_refused(evaluation: str, capsys: pytest.CaptureFixture[str]):
    assert run(["eval", "checkpoint=X", f"evaluation={evaluation}", "classnames=[a,b]"]) == 1
    assert f"no zero-shot evaluation is chosen ({evaluation})" in capsys.readouterr().err


def test_weights_that_are_not_finite_give_no_result(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model = dual_encoder()
    model.get_parameter("text_projection").data[0, 0] = float("nan")
    good = bundle(model)
    bad = Bundle(model, good.tokenizer, good.transform, {}, good.device, "X")
    monkeypatch.setattr(module, "load", lambda path, **_: bad)
    assert evaluate(root) == 3
    assert "error: checkpoint X: its text features are not finite" in capsys.readouterr().err
    assert not (root / "out.json").exists()


def test_what_a_file_does_not_say_is_asked_for_and_given_by_keys(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    given: dict[str, Any] = {}

    def asking(path: str, **options: Any) -> Bundle:
        given.update(options)
        choices = Choices(activation=options["activation"])
        choices.need_activation()
        heads(Path(path), "image_heads", 80, options["image_heads"])
        return bundle(dual_encoder())

    monkeypatch.setattr(module, "load", asking)
    assert evaluate(root) == 1
    error = capsys.readouterr().err
    assert "give activation=quickgelu (OpenAI" in error
    assert "or activation=gelu" in error
    assert evaluate(root, "activation=relu") == 1
    assert "activation=relu: expected one of quickgelu" in capsys.readouterr().err
    assert evaluate(root, "activation=[gelu]") == 1
    assert "activation=['gelu']: expected one word" in capsys.readouterr().err
    assert evaluate(root, "activation=gelu") == 1
    assert "width 80 does not tell the number of image_heads (not a multiple of 64); give image_heads=\n" in (
        capsys.readouterr().err
    )
    words = [f"classnames={root}/names.txt", "templates=[a {}.]"]
    assert evaluate(root, "activation=gelu", "image_heads=5", "text_heads=2", *words) == 0
    assert {name: given[name] for name in NAMES} == {"activation": "gelu", "image_heads": 5, "text_heads": 2}
