"""`openslip predict` on files and folders, some of them unreadable; the models are those of `test_predict`."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder
from image_server import image_server
from screens import attach_plain, too_wide

from openslip.__main__ import run
from openslip.inference import embedding_cache
from openslip.inference.bundle import Bundle
from openslip.inference.classifier import ZeroShotClassifier
from openslip.inference.imagenet_prompts import imagenet_templates

LABELS = ["red", "blue", "green fox"]


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("openslip.inference.load.load", lambda path, **_: MODELS[path])
    monkeypatch.setenv("OPENSLIP_CACHE", str(tmp_path / "cache"))


def with_bias() -> Any:
    model = dual_encoder()
    model.logit_bias = torch.nn.Parameter(torch.tensor(-1.0))
    return bundle(model)


MODELS = {"plain": bundle(dual_encoder()), "biased": with_bias()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for place, name in enumerate(("b.png", "a.jpg", "deeper/c.webp", ".hidden.png", ".thumbs/d.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(Pictures(5)[place].image)
    (folder / "notes.txt").write_text("no image")
    return folder


def predict(*words: object, labels: str = ",".join(LABELS), checkpoint: str = "plain") -> int:
    return run(["predict", *map(str, words), "--checkpoint", checkpoint, "--labels", labels])


def test_good_images_are_printed_and_bad_ones_listed(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(Pictures(1)[0].image[:60])
    words = [folder / "a.jpg", bad, tmp_path / "missing.jpg", folder / "b.png"]
    assert predict(*words) == 1
    captured = capsys.readouterr()
    assert [line for line in captured.out.splitlines() if not line.startswith(" ")] == [str(words[0]), str(words[3])]
    errors = captured.err.splitlines()
    assert errors[0].startswith(f"error: {bad}: cannot be decoded")
    assert errors[1] == f"error: image {words[2]}: no such file"
    assert errors[2:] == ["error: 2 of 4 images could not be read"]
    assert predict(*words, "--json") == 1
    assert [entry["image"] for entry in json.loads(capsys.readouterr().out)] == [str(words[0]), str(words[3])]


def test_a_folder_is_read_in_order_without_hidden_files(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert predict(folder, "--json") == 0
    captured = capsys.readouterr()
    images = [entry["image"] for entry in json.loads(captured.out)]
    assert images == [str(folder / name) for name in ("a.jpg", "b.png", "deeper/c.webp")]
    assert captured.err == f"{folder}: skipped 1 x file that is no image (.txt), such as notes.txt\n"


def test_a_folder_without_images_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    assert predict(tmp_path / "empty", folder / "a.jpg") == 1
    captured = capsys.readouterr()
    assert captured.err == f"error: {tmp_path / 'empty'}: the folder holds no image\n"
    assert captured.out.startswith(str(folder / "a.jpg"))


def test_csv_and_json_lines_hold_what_json_prints(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert predict(folder, "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    for name in ("results.csv", "results.jsonl"):
        assert predict(folder, "--output", tmp_path / name) == 0
        assert capsys.readouterr().out == f"{tmp_path / name}: 3 images\n"
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()] == entries
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, entry in zip(rows, entries, strict=True):
        probabilities = {label["label"]: label["probability"] for label in entry["labels"]}
        assert (row["image"], row["label"]) == (entry["image"], entry["labels"][0]["label"])
        assert float(row["probability"]) == entry["labels"][0]["probability"]
        assert {label: float(row[label]) for label in LABELS} == probabilities


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("results.txt", r"error: --output \S+results\.txt: expected a name that ends in \.csv or \.jsonl\n"),
        (
            "nowhere/results.csv",
            r"error: \S+nowhere/results\.csv could not be written \(No .*: --output FILE names .*\n",
        ),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_first(
    name: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert predict(folder, "--output", folder.parent / name, checkpoint="missing") == 1
    assert re.fullmatch(said, capsys.readouterr().err)


@pytest.mark.parametrize("from_file", [False, True])
def test_blank_and_repeated_labels_are_dropped_and_said(
    from_file: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    labels = ["red", "", " blue ", "Red", "green_fox", "green fox"]
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    given = f"@{tmp_path / 'labels.txt'}" if from_file else ",".join(labels)
    assert predict(folder / "a.jpg", "--json", labels=given) == 0
    captured = capsys.readouterr()
    assert {row["label"] for row in json.loads(captured.out)[0]["labels"]} == {"red", "blue", "green_fox"}
    assert captured.err == (
        "labels: 1 blank dropped; red, green_fox given several times and kept once\n"
        "labels: `_` is read as a space (`keep` for underscores leaves it)\n"
    )
    assert predict(folder / "a.jpg", "--json", "--underscores", "keep", labels="green_fox,red") == 0
    assert capsys.readouterr().err == ""


def test_a_template_that_is_given_twice_counts_once_and_that_is_said(folder: Path, capsys: pytest.CaptureFixture[str]):
    def ranking(*templates: str) -> list[dict[str, Any]]:
        words = [word for template in templates for word in ("--template", template)]
        assert predict(folder / "a.jpg", "--json", *words) == 0
        captured = capsys.readouterr()
        said.append(captured.err)
        return json.loads(captured.out)[0]["labels"]

    said: list[str] = []
    assert ranking("a {}.", "the {}.", "A  {}.", "a {}.") == ranking("a {}.", "the {}.")
    assert said == ["templates: a {}. given several times and used once\n", ""]


@pytest.mark.parametrize(
    ("given", "labels"),
    [('"man, old", dog', {"man, old", "dog"}), ('"red","blue"', {"red", "blue"}), ("red\nblue", {"red", "blue"})],
)
def test_labels_in_quotation_marks_may_hold_commas(
    given: str, labels: set[str], folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert predict(folder / "a.jpg", "--json", labels=given) == 0
    assert {row["label"] for row in json.loads(capsys.readouterr().out)[0]["labels"]} == labels


@pytest.mark.parametrize(
    "given", ["['red','blue']", "'red','blue'", '["red", "blue"]', '{"red": 1, "blue": 2}', '"red,a']
)
def test_labels_in_brackets_or_in_an_open_quotation_are_refused(
    given: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert predict(folder / "a.jpg", labels=given) == 1
    assert capsys.readouterr().err.startswith(f"error: --labels {given}: ")


def test_a_single_label_is_said_to_be_certain(folder: Path, capsys: pytest.CaptureFixture[str]):
    said = "labels: 'red;blue' is the only one, so its probability is always 1: give several\n"
    assert predict(folder / "a.jpg", labels="red;blue") == 0
    assert capsys.readouterr().err == said
    assert predict(folder / "a.jpg", "--probabilities", "sigmoid", labels="red", checkpoint="biased") == 0
    assert capsys.readouterr().err == ""


def test_sigmoid_probabilities_need_a_bias(folder: Path, capsys: pytest.CaptureFixture[str]):
    words = [folder / "a.jpg", "--json", "--probabilities", "sigmoid"]
    assert predict(*words) == 1
    assert "error: DualEncoder: sigmoid probabilities need a model with a logit_bias" in capsys.readouterr().err
    assert predict(*words, checkpoint="biased") == 0
    rows = json.loads(capsys.readouterr().out)[0]["labels"]
    logits = MODELS["biased"].similarity([folder / "a.jpg"], [f"a photo of a {row['label']}." for row in rows])[0]
    expected = (logits * MODELS["biased"].model.logit_scale.exp() - 1).sigmoid().tolist()
    np.testing.assert_allclose([row["probability"] for row in rows], expected, rtol=1e-4)


def printed_csv(*words: object, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    assert predict(*words, "--csv") == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def entries(*words: object, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert predict(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_csv_is_printed_as_it_is_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for words in ([], ["--top", "2"], ["--reject", "0.34"], ["--reject", "1"]):
        assert predict(folder, "--csv", *words) == 0
        captured = capsys.readouterr()
        assert predict(folder, "--output", tmp_path / "results.csv", *words) == 0
        capsys.readouterr()
        assert (tmp_path / "results.csv").read_text() == captured.out


def test_top_keeps_the_most_probable_labels_in_every_form(folder: Path, capsys: pytest.CaptureFixture[str]):
    whole = entries(folder, capsys=capsys)
    for top, kept in ((1, 1), (2, 2), (9, 3)):
        cut = entries(folder, "--top", top, capsys=capsys)
        assert [entry["labels"] for entry in cut] == [entry["labels"][:kept] for entry in whole]
    for row, entry in zip(printed_csv(folder, "--top", 2, capsys=capsys), whole, strict=True):
        assert list(row) == ["image", "label", "probability", "label_2", "probability_2"]
        assert [row["label"], row["label_2"]] == [label["label"] for label in entry["labels"][:2]]
        assert float(row["probability_2"]) == entry["labels"][1]["probability"]
    assert predict(folder / "a.jpg", "--top", 1) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert predict(folder / "a.jpg", "--top", 0) == 1
    assert capsys.readouterr().err == "error: --top 0: expected at least 1\n"


def test_rejected_images_have_no_label_and_the_others_keep_theirs(folder: Path, capsys: pytest.CaptureFixture[str]):
    whole = entries(folder, capsys=capsys)
    best = sorted(entry["labels"][0]["probability"] for entry in whole)
    threshold = (best[0] + best[1]) / 2
    expected = [entry["labels"] if entry["labels"][0]["probability"] >= threshold else [] for entry in whole]
    assert [entry["labels"] for entry in entries(folder, "--reject", threshold, capsys=capsys)] == expected
    assert expected.count([]) == 1
    rejected = [row for row in printed_csv(folder, "--reject", threshold, capsys=capsys) if not row["label"]]
    assert len(rejected) == 1
    assert [*rejected[0].values()][1:] == [""] * (2 + len(LABELS))
    assert predict(folder, "--reject", threshold) == 0
    assert capsys.readouterr().out.splitlines().count("  no label") == 1


def test_templates_come_from_a_file_or_by_name(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "prompts.txt").write_text("a {}.\nthe {}.\n")
    given = entries(folder, "--template", "a {}.", "--template", "the {}.", capsys=capsys)
    assert entries(folder, "--templates", tmp_path / "prompts.txt", capsys=capsys) == given
    by_name = entries(folder, "--templates", "imagenet7", capsys=capsys)
    classify = ZeroShotClassifier(MODELS["plain"], LABELS, imagenet_templates(7))
    expected = classify([folder / "a.jpg", folder / "b.png", folder / "deeper" / "c.webp"])
    for entry, ranking in zip(by_name, expected, strict=True):
        probabilities = {label["label"]: label["probability"] for label in entry["labels"]}
        assert probabilities == pytest.approx(dict(ranking), abs=1e-6)  # pyright: ignore
    assert by_name != given
    assert predict(folder, "--templates", "imagenet8") == 1
    assert "error: templates=imagenet8: no such file" in capsys.readouterr().err
    assert predict(folder, "--templates", "imagenet7", "--template", "a {}.") == 1


def test_the_second_call_reads_the_embeddings_of_the_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(embedding_cache, "_memory", WeakKeyDictionary())
    first = entries(folder, capsys=capsys)
    (stored,) = (tmp_path / "cache" / "embeddings").iterdir()
    monkeypatch.setattr(embedding_cache, "_memory", WeakKeyDictionary())
    monkeypatch.setattr(Bundle, "encode_text", None)
    assert entries(folder, capsys=capsys) == first
    monkeypatch.undo()
    assert stored.suffix == ".safetensors"


def test_choices_reach_load_and_model_is_another_name_of_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("openslip.inference.load.load", lambda path, **options: given.append(options) or MODELS[path])
    choices = ["--activation", "quickgelu", "--image-heads", "3", "--text-heads", "2"]
    words = ["predict", str(folder / "a.jpg"), "--model", "plain", "--labels", "red,blue"]
    assert run(words) == run([*words, *choices]) == 0
    names = ("activation", "image_heads", "text_heads")
    assert [[options[name] for name in names] for options in given] == [[None] * 3, ["quickgelu", 3, 2]]
    assert run([*words, "--activation", "relu"]) == 1


def test_addresses_are_classified_beside_files_and_a_bad_one_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    with image_server({"/a.jpg": (folder / "a.jpg").read_bytes(), "/page": b"<html>"}) as root:
        words = [f"{root}/a.jpg", folder / "a.jpg", f"{root}/page", f"{root}/missing.jpg"]
        assert predict(*words, "--json") == 1
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)
    assert (first["image"], second["image"]) == (f"{root}/a.jpg", str(folder / "a.jpg"))
    assert first["labels"] == second["labels"]
    page, missing, count = captured.err.splitlines()
    assert page.startswith(f"error: image {root}/page: cannot be decoded (not an image")
    assert missing.startswith(f"error: image {root}/missing.jpg: cannot be downloaded (HTTP 404 Not Found)")
    assert count == "error: 2 of 4 images could not be read"


@pytest.mark.parametrize("width", [60, 80])
def test_bars_and_long_labels_fit_the_terminal(width: int, folder: Path, monkeypatch: pytest.MonkeyPatch):
    long = f"a very long label that describes a large photograph of a high mountain {'in-the-snow' * 9}"
    terminal = attach_plain(monkeypatch, width)
    monkeypatch.chdir(folder)
    assert run(["predict", "b.png", "--checkpoint", "plain", "--labels", f"red,{long}"]) == 0
    image, *rows = terminal.written.splitlines()
    assert image == "b.png"
    assert not too_wide(terminal.written, width)
    assert max(map(len, rows)) > width - 15  # the room is used
    assert max(map(len, rows)) <= width
    assert len(re.findall(r"\d+\.\d %  \u2588*", terminal.written)) == 2


def test_a_file_gets_each_label_on_one_line(folder: Path, capsys: pytest.CaptureFixture[str]):
    label = "a label of many words with an escape \x1b in it, " * 3
    assert run(["predict", str(folder / "b.png"), "--checkpoint", "plain", "--labels", f'"{label}"']) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
