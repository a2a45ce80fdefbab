"""Model cards: facts of the checkpoint and its run, the licence, the check, and no local paths or credentials."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from exported_models import bundle_of
from model_folders import clip_json
from PIL import Image
from stored_models import write_checkpoint

import openslip
from openslip.data.image.eval_transform import EvalTransform
from openslip.evaluation.feature_cache import FeatureCache
from openslip.export import forms
from openslip.export.card import write_card
from openslip.export.card_code import LOADING, code_of
from openslip.export.card_facts import without_folders, without_paths
from openslip.inference.bundle import Bundle
from openslip.inference.files import read, write
from openslip.inference.formats.openslip import write as write_bundle
from openslip.text.bare_ids import BareIds
from openslip.text.tokenizer_json import TokenizerJson

SHARDS = "[/home/jane doe/a-{000..009}.tar,https://u:SECRET@x.org/b.tar,/home/jane/c.tar]"
START: dict[str, Any] = {
    "command": f"/home/jane/venv/bin/train.py 'data.source.shards={SHARDS}' logger.wandb.api_key=SECRET "
    "init_from.checkpoint=/home/jane/first/last.ckpt optim/optimizer=lion",
    "dates": ["2026-01-02T03:04:05+00:00"],
    "commit": "0123abc",
    "openslip": "0.1.0",
    "ranks": 2,
    "device": "cpu",
    "data": {"samples": 12345, "fingerprint": "f"},
    "versions": {"python": "3.11.7", "torch": "2.14.1", "timm": None},
}
CONFIG: dict[str, Any] = {
    "global_batch_size": 64,
    "seed": 3,
    "objective": {"_target_": "openslip.objectives.slip.SLIP"},
    "optim": {"optimizer": {"_target_": "torch.optim.AdamW"}, "lr": 0.0008, "weight_decay": 0.1},
    "trainer": {"precision": "bf16-mixed"},
    "data": {
        "source": {
            "_target_": "openslip.data.sources.shards.Shards",
            "shards": "/home/jane/data/cc3m-{0000..0099}.tar",
            "cache": {"folder": "/home/jane/cache"},
        }
    },
    "init_from": {"checkpoint": "/home/jane/first/last.ckpt"},
    "towers": {"image": {"weights": None}, "text": {"weights": None}},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The model of a run's checkpoint, with its config and provenance."""
    path = write_checkpoint(tmp_path / "jane" / "model.ckpt")
    content = read(path)
    content["openslip"] |= {"step": 500, "run": CONFIG, "provenance": {"starts": [START], "training_seconds": 10.0}}
    write(path, content)
    return openslip.load(path)


def card(folder: Path, bundle: Bundle, *arguments: Any, form: str = "open_clip", **options: Any) -> tuple[dict, str]:
    """Return the metadata and the text of a card."""
    write_card(folder, bundle, form, *(arguments or (None,)), **options)
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text.replace("\\", "")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounded_weights_are_named_as_such(dtype: str, tmp_path: Path):
    bundle = bundle_of("clip")
    write_bundle(bundle, tmp_path / "model.safetensors", getattr(torch, dtype))
    _, text = card(tmp_path, openslip.load(tmp_path / "model.safetensors"))
    rounded = f"| rounding | all weights are {dtype} values, as in a file of this dtype |"
    assert (rounded in text) == (dtype != "float32")
    assert ("rounding" in text) == (dtype != "float32")


def store(bundle: Bundle, name: str, weights: str, **changes: Any) -> None:
    folder = Path(f"{bundle.file}-evaluations")
    folder.mkdir(exist_ok=True)
    record = {"evaluation": name, "checkpoint": "x", "metrics": {"top1": 43.21, "num_samples": 1234.0}, "notes": {}}
    record |= {"headline_metric": "top1", "config": {}, "weights": weights, "problems": []} | changes
    (folder / f"{name}.json").write_text(json.dumps(record))


def test_the_card_states_recipe_dataset_and_provenance(tmp_path: Path, bundle: Bundle):
    header, text = card(tmp_path, bundle)
    assert header == {
        "license": "other",
        "library_name": "open_clip",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["openslip", "slip"],
    }
    for line in (
        "# model.ckpt",
        "| method | SLIP |",
        "| training | step 500 of global batch 64: 32,000 samples seen |",
        "| optimizer | AdamW, lr 0.0008, weight decay 0.1 |",
        "| precision | bf16-mixed |",
        "| dataset | Shards, shards cc3m-{0000..0099}.tar |",
        "| samples in the dataset | 12,345 |",
        "| initial weights | last.ckpt |",
        "| commit | 0123abc |",
        "| ranks | 2 |",
        "| versions | python 3.11.7, torch 2.14.1 |",
        "| date | 2026-01-02 |",
        "| images | size 16, resize shortest, interpolation bilinear, mean [0.5, 0.5, 0.5], std [0.2, 0.2, 0.2] |",
        "| tokenizer | ClipBpe, context_length 77, truncation keep_end, special_text plain, mask_token False |",
        'open_clip.create_model_from_pretrained("local-dir:FOLDER")',
    ):
        assert line in text
    parameters = sum(weight.numel() for weight in bundle.model.parameters())
    assert f"| parameters | {parameters:,} |" in text


def test_of_a_run_that_was_resumed_the_card_states_the_last_start(tmp_path: Path, bundle: Bundle):
    first = {**START, "commit": "fff9999", "ranks": 1, "dates": ["2025-12-31T23:59:59+00:00"]}
    _, text = card(tmp_path, replace(bundle, provenance={"starts": [first, START]}))
    for line in ("| commit | 0123abc |", "| ranks | 2 |", "| date | 2026-01-02 |"):
        assert line in text
    assert "| starts of the run | 2; the facts are of the last one |" in text


def test_the_card_names_no_directory_and_no_credentials(tmp_path: Path, bundle: Bundle):
    _, text = card(tmp_path, bundle)
    for leak in ("jane", "SECRET", "home", str(tmp_path), "cache"):
        assert leak not in text
    assert "[a-{000..009}.tar,https://x.org/b.tar,c.tar]" in text
    assert "init_from.checkpoint=last.ckpt optim/optimizer=lion" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/j/x.tar", "x.tar"),
        ("~/x.tar", "x.tar"),
        ("runs/name", "name"),
        ("[/a b/c.tar,d/e.tar]", "[c.tar,e.tar]"),
        ("{root: /a/b, split: val}", "{root: b, split: val}".replace(": ", ":").replace(",split", ", split")),
        ("a {}.", "a {}."),
        ("https://x.org/a/b.tar", "https://x.org/a/b.tar"),
    ],
)
def test_paths_are_shown_by_their_last_part(text: str, shown: str):
    assert without_folders(text).replace(": ", ":") == shown
    assert without_paths(f"/opt/train.py '{text}'").startswith("train.py ")


def test_only_metrics_of_exactly_these_weights_are_shown(tmp_path: Path, bundle: Bundle):
    weights = FeatureCache(None).weights(bundle)
    assert "No metrics of these weights are stored." in card(tmp_path, bundle)[1]
    store(bundle, "imagenet", weights)
    store(bundle, "food101", weights, problems=["3 images are missing"])
    store(bundle, "stale", "0" * 64)
    _, text = card(tmp_path, bundle)
    assert "| imagenet | top1 | 43.21 % | 1,234 |" in text
    assert "| food101 | top1 | 43.21 % (of an incomplete or repaired dataset) | 1,234 |" in text
    assert "stale" not in text


def test_the_licence_is_the_users_or_the_publishers_or_other(tmp_path: Path, bundle: Bundle):
    header, text = card(tmp_path, bundle)
    assert header["license"] == "other"
    assert "The checkpoint states no licence." in text
    header, text = card(tmp_path, bundle, licence="cc-by-nc-4.0")
    assert header["license"] == "cc-by-nc-4.0"
    assert "cc-by-nc-4.0, as stated by the person who exported the model." in text
    published = replace(bundle, origin="slip_base_100ep", file=None, provenance={})
    header, text = card(tmp_path, published)
    assert header["license"] == "mit"
    assert "MIT, as stated by facebookresearch/SLIP" in text
    assert "| dataset | YFCC15M |" in text


def test_the_check_is_a_table_or_said_to_be_missing(tmp_path: Path, bundle: Bundle):
    assert "Not checked" in card(tmp_path, bundle)[1]
    _, text = card(tmp_path, bundle, {"pixels": 0.0, "ids": 0.0, "image_features": 2.34e-7})
    assert "| image_features | 2.3e-07 |" in text
    assert "| ids | none |" in text
    assert "Not checked" not in text
    assert "except for the crop" not in text
    _, text = card(tmp_path, bundle, {"pixels": 0.0, "crop": 0.21})
    assert "the same as OpenSLIP on the inputs of the check, except for the crop: of some" in text
    assert "| crop | 2.1e-01 |" in text


def test_our_own_form_holds_no_more_of_this_machine_than_the_card(tmp_path: Path, bundle: Bundle):
    start = START | {"hardware": {"cpu": "a fast one"}}
    parent = {"checkpoint": "/home/jane/a.pt", "weight": 0.5, "provenance": {"starts": [start]}}
    record = {"starts": [start], "merge": {"command": START["command"], "parents": [parent]}, "published": "a/b"}
    forms.load("safetensors").write(replace(bundle, provenance=record), tmp_path)
    for leak in (b"jane", b"SECRET", b"a fast one"):
        assert leak not in (tmp_path / "model.safetensors").read_bytes()
    again = openslip.load(tmp_path).provenance
    assert again["merge"]["parents"][0] | {"provenance": None} == {
        "checkpoint": "a.pt",
        "weight": 0.5,
        "provenance": None,
    }
    assert again["starts"] == again["merge"]["parents"][0]["provenance"]["starts"]
    assert again["starts"][0] | {"command": ""} == START | {"command": ""}
    assert again["published"] == "a/b"


def test_a_merged_model_names_its_parents(tmp_path: Path, bundle: Bundle):
    parents = [
        {"checkpoint": f"/home/jane/{name}.pt", "weight": weight, "provenance": {}}
        for name, weight in (("a", 0.3), ("b", 0.7))
    ]
    record = {"merge": {"alpha": 0.7, "commit": "c", "parents": parents}}
    _, text = card(tmp_path, replace(bundle, provenance=record))
    assert "| merge | 0.3 * a.pt + 0.7 * b.pt |" in text
    assert "jane" not in text


@pytest.mark.parametrize(
    "record",
    [{"starts": 3}, {"starts": ["x"]}, {"starts": [{"command": 5, "dates": {}}]}, {"merge": [1]}, {"a": "|\n# b"}],
)
def test_provenance_of_another_form_is_left_out(tmp_path: Path, bundle: Bundle, record: dict[str, Any]):
    _, text = card(tmp_path, replace(bundle, provenance=record))
    assert "| checkpoint | model.ckpt |" in text
    assert "# b" not in text


def test_a_model_without_texts_has_no_task_with_texts(tmp_path: Path, bundle: Bundle):
    assert card(tmp_path, replace(bundle, tokenizer=None))[0]["pipeline_tag"] == "image-feature-extraction"
    assert card(tmp_path, bundle, form="timm")[0]["pipeline_tag"] == "image-feature-extraction"


@pytest.mark.parametrize("form", LOADING)
def test_every_form_says_how_it_is_used_in_few_lines(form: str, bundle: Bundle):
    assert set(forms.names()) == LOADING.keys()
    bare = BareIds(context_length=8, vocab_size=60, pooled="first", end=58)
    for tokenizer in (bundle.tokenizer, None, bare):
        code = code_of(form, replace(bundle, tokenizer=tokenizer))
        compile(code, "card", "exec")
        steps = [line for line in code.splitlines() if line and not line.startswith(("import ", "from "))]
        assert 2 <= len(steps) <= 12
        is_named = tokenizer is bundle.tokenizer and form != "timm"
        assert ("logits = " in code, "a cat" in code) == (is_named, is_named)
        assert "BIAS" not in code


def test_the_card_says_that_texts_are_not_repaired(tmp_path: Path, bundle: Bundle):
    assert [form for form in LOADING if "decodes HTML entities" in card(tmp_path, bundle, form=form)[1]] == [
        "huggingface",
        "onnx",
    ]
    siglip = TokenizerJson(definition=clip_json(), context_length=8, pad=1, pooled="last", clean="siglip")
    assert "HTML" not in card(tmp_path, replace(bundle, tokenizer=siglip), form="onnx")[1]


def run_lines(form: str, bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Run the lines of a form's card on a folder, and return their variables."""
    names: dict[str, Any] = {}
    exec(code_of(form, bundle).replace("FOLDER", str(folder)), names)
    return names


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Image.Image]:
    """The image of the card's lines, `image.jpg` in the current folder, of a shape at which each rounding matters."""
    monkeypatch.chdir(tmp_path)
    colours = np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8)
    Image.fromarray(colours).save("image.jpg")
    with Image.open("image.jpg") as opened:
        yield opened


def assert_same_result(form: str, bundle: Bundle, folder: Path) -> None:
    """Compare the logits, or the features of a form without texts, with ours."""
    define = getattr(forms.load(form), "transform", None)
    ours = bundle if define is None else replace(bundle, transform=define(bundle))
    forms.load(form).write(bundle, folder)
    names = run_lines(form, bundle, folder)
    features = ours.encode_image(["image.jpg"])
    if form == "timm":
        torch.testing.assert_close(torch.nn.functional.normalize(names["features"]), features, rtol=0, atol=1e-5)
        return
    logits = ours.scale() * features @ ours.encode_text(["a cat", "a dog"]).T
    if getattr(bundle.model, "logit_bias", None) is not None:
        logits += ours.bias()
    torch.testing.assert_close(torch.as_tensor(names["logits"]), logits, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("image")
def test_the_lines_of_the_card_load_our_own_form(tmp_path: Path, bundle: Bundle):
    assert_same_result("safetensors", bundle, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"resize": "squash"},
        {"resize": "longest"},
        {"crop": "round"},
        {"crop": "floor"},
        {"resize_to": 23, "interpolation": "bicubic"},
    ],
)
def test_the_lines_of_onnx_prepare_images_as_the_model_does(
    settings: dict[str, Any], tmp_path: Path, bundle: Bundle, image: Image.Image
):
    transform = EvalTransform(**{"size": 15, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], **settings})
    (tmp_path / "preprocessing.json").write_text(json.dumps({"image": transform.settings()}))
    code, _ = code_of("onnx", replace(bundle, transform=transform, tokenizer=None)).split("features = ")
    names: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(tmp_path)), names)
    torch.testing.assert_close(torch.from_numpy(names["pixels"][0]), transform(image), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("image")
@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("huggingface", "clip"),
        ("huggingface", "slip"),
        ("huggingface", "siglip"),
        ("huggingface", "resnet"),
        ("onnx", "resnet"),
        ("onnx", "siglip"),
        ("open_clip", "clip"),
        ("open_clip", "clip_resnet"),
        ("timm", "test_vit"),
        ("timm", "resnet"),
    ],
)
def test_the_lines_of_the_card_compute_our_logits(form: str, name: str, tmp_path: Path):
    """A batch norm, that of `resnet`, computes something else in training mode."""
    assert_same_result(form, bundle_of(name), tmp_path)
