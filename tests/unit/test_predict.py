import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import openslip
from openslip.errors import UserError
from openslip.inference.architecture import build_model
from openslip.inference.bundle import Bundle
from openslip.inference.classifier import ZeroShotClassifier
from openslip.inference.files import read, write
from openslip.inference.formats.slip import to_published
from openslip.inference.load import load
from openslip.inference.strip import strip
from openslip.models.dual_encoder import DualEncoder

LABELS = ["man kicking", "man sleeping", "dog"]
TEMPLATES = ["a picture of a {}.", "a {} in a movie."]
TOKENIZER: dict[str, Any] = {"context_length": 77, "truncation": "keep_end", "special_text": "plain"}
TRANSFORM = {"size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
TOWER = {
    "_target_": "openslip.models.timm_tower.TimmTower",
    "name": "vit_base_patch16_224",
    "image_size": 32,
    "arguments": {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "mlp_ratio": 4.0},
}
TEXT = {
    "_target_": "openslip.models.text_transformer.TextTransformer",
    "vocab_size": 49408,
    "context_length": 77,
    "width": 64,
    "depth": 2,
    "heads": 1,
}
DUAL: dict[str, Any] = {
    "_target_": "openslip.models.dual_encoder.DualEncoder",
    "image_tower": TOWER,
    "text_tower": TEXT,
    "embed_dim": 16,
    "logit_scale_init": 2.6593,
}
IMAGE_ONLY: dict[str, Any] = {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": TOWER}


def make_run(folder: Path, architecture: dict[str, Any] = DUAL) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(architecture).eval()
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    moments = [{name: torch.ones_like(tensor) for name, tensor in state.items()} for _ in range(2)]
    settings = {
        "format": 1,
        "architecture": architecture,
        "tokenizer": TOKENIZER if architecture is DUAL else None,
        "transform": TRANSFORM,
        "step": 3,
    }
    payload = {
        "state_dict": {**state, "objective.head.0.weight": torch.ones(50, 50)},
        "optimizer_states": moments,
        "openslip": settings,
    }
    write(folder / "checkpoints" / "last.ckpt", payload)
    return model


def make_published(path: Path, model: nn.Module, name: str) -> None:
    state = {f"module.{key}": tensor.detach() for key, tensor in to_published(model, nn.Module()).items()}
    args = argparse.Namespace(model=name)
    torch.save({"epoch": 1, "state_dict": state, "best_acc1": np.float64(1.0), "args": args}, path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    make_run(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(run: Path) -> Bundle:
    return load(run)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return paths


def same_weights(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_folder_and_its_file_give_the_trained_model(run: Path, loaded: Bundle):
    expected = read(run / "checkpoints" / "last.ckpt")["state_dict"]
    trained = {key.removeprefix("model."): w for key, w in expected.items() if key.startswith("model.")}
    assert same_weights(loaded.model.state_dict(), trained)
    assert same_weights(load(run / "checkpoints" / "last.ckpt").model.state_dict(), trained)
    assert not loaded.model.training
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.settings() == {**TOKENIZER, "mask_token": False}
    assert loaded.transform.settings() == TRANSFORM


def test_the_package_names_load_and_the_classifier():
    assert openslip.load is load
    assert openslip.ZeroShotClassifier is ZeroShotClassifier


def as_dict(ranking: Any) -> dict[str, float]:
    return dict(ranking)


def unit(vector: list[float]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]


def test_probabilities_are_those_of_the_formula_written_out(loaded: Bundle, pictures: list[Path]):
    found = ZeroShotClassifier(loaded, LABELS, TEMPLATES)(pictures[0])
    model, tokenizer = loaded.model, loaded.tokenizer
    assert isinstance(model, DualEncoder)
    assert tokenizer is not None
    with torch.no_grad():
        classes = []
        for label in LABELS:
            prompts = []
            for template in TEMPLATES:
                text, _ = tokenizer.encode([template.replace("{}", label)])  # all 77 tokens, one prompt at a time
                length = torch.tensor([text[0].tolist().index(49407) + 1])
                prompts.append(unit(model.encode_text(text, length)[0].tolist()))
            classes.append(unit([sum(column) / len(prompts) for column in zip(*prompts, strict=True)]))
        image = loaded.transform(Image.open(pictures[0]).convert("RGB"))
        feature = unit(model.encode_image(image[None])[0].tolist())
        scale = math.exp(model.logit_scale.item())
    weights = [math.exp(scale * sum(x * y for x, y in zip(feature, c, strict=True))) for c in classes]
    expected = {label: weight / sum(weights) for label, weight in zip(LABELS, weights, strict=True)}
    assert as_dict(found) == pytest.approx(expected, abs=1e-5)
    assert list(as_dict(found)) == sorted(LABELS, key=lambda label: -expected[label])
    assert max(expected.values()) - min(expected.values()) > 1e-3  # else any order would do


def test_an_underscore_of_a_label_is_a_space_as_in_evaluations_unless_it_is_to_be_kept(
    loaded: Bundle, pictures: list[Path], capsys: pytest.CaptureFixture[str]
):
    def probabilities(labels: list[str], underscores: str = "space") -> list[float]:
        classify = ZeroShotClassifier(loaded, labels, underscores=underscores)
        ranking = as_dict(classify(pictures[0]))
        return [ranking[label] for label in labels]

    spaces, written = ["large blue ring", "small red cross"], ["large_blue_ring", "small_red_cross"]
    expected = probabilities(spaces)
    assert capsys.readouterr().err == ""
    assert probabilities(written) == expected
    assert capsys.readouterr().err == "labels: `_` is read as a space (`keep` for underscores leaves it)\n"
    assert probabilities(written, "keep") != pytest.approx(expected, abs=1e-3)
    with pytest.raises(UserError, match=r"underscores=dash: expected space"):
        ZeroShotClassifier(loaded, written, underscores="dash")


def test_a_list_gives_one_ranking_per_picture_in_order(loaded: Bundle, pictures: list[Path]):
    classifier = ZeroShotClassifier(loaded, LABELS, TEMPLATES)
    rankings = classifier([pictures[0], str(pictures[1]), Image.open(pictures[2])])
    assert len(rankings) == 3
    for ranking, picture in zip(rankings, pictures, strict=True):
        assert as_dict(ranking) == pytest.approx(as_dict(classifier(picture)), abs=1e-5)
    assert classifier([]) == []


def test_text_is_encoded_once(loaded: Bundle, pictures: list[Path]):
    assert isinstance(loaded.model, DualEncoder)
    calls: list[int] = []
    hook = loaded.model.text_tower.register_forward_hook(lambda *_: calls.append(1))
    classifier = ZeroShotClassifier(loaded, [*LABELS, "a label of this test alone"], TEMPLATES)
    encoded = len(calls)
    classifier(pictures)
    classifier(pictures[0])
    hook.remove()
    assert encoded > 0
    assert len(calls) == encoded


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [([], TEMPLATES, "empty"), (LABELS, [], "empty"), (LABELS, ["a picture."], r"a picture\.")],
)
def test_prompts_that_cannot_be_made_are_refused(loaded: Bundle, labels: list[str], templates: list[str], message: str):
    with pytest.raises(UserError, match=message):
        ZeroShotClassifier(loaded, labels, templates)


def test_what_is_no_picture_is_named(loaded: Bundle, tmp_path: Path):
    classifier = ZeroShotClassifier(loaded, LABELS, TEMPLATES)
    (tmp_path / "notes.jpg").write_text("no picture")
    for name in ("notes.jpg", "missing.jpg"):
        with pytest.raises(UserError, match=name):
            classifier(tmp_path / name)


def test_a_model_without_text_tower_loads_and_refuses_labels(tmp_path: Path):
    make_run(tmp_path / "simclr", IMAGE_ONLY)
    loaded = load(tmp_path / "simclr")
    assert loaded.tokenizer is None
    with pytest.raises(UserError, match="need a text tower"):
        ZeroShotClassifier(loaded, LABELS, TEMPLATES)


@pytest.mark.parametrize(("architecture", "name"), [(DUAL, "CLIP_TINY"), (IMAGE_ONLY, "SIMCLR_TINY")])
def test_a_published_checkpoint_gives_its_weights_and_published_settings(
    architecture: dict[str, Any], name: str, tmp_path: Path
):
    model = make_run(tmp_path / "run", architecture)
    make_published(tmp_path / "published.pt", model, name)
    loaded = load(tmp_path / "published.pt")
    assert same_weights(loaded.model.state_dict(), model.state_dict())
    published = {"context_length": 77, "truncation": "drop_end", "special_text": "token", "mask_token": False}
    assert (loaded.tokenizer and loaded.tokenizer.settings()) == (published if architecture is DUAL else None)
    mean_std = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert loaded.transform.settings() == {"size": 32, **mean_std}


@pytest.mark.parametrize("kind", ["run", "published"])
def test_a_stripped_file_predicts_the_same_and_is_as_large_as_its_weights(
    kind: str, run: Path, loaded: Bundle, pictures: list[Path], tmp_path: Path
):
    source = run
    if kind == "published":
        source = tmp_path / "published.pt"
        make_published(source, loaded.model, "CLIP_TINY")
    before, after, _ = strip(source, tmp_path / "stripped.pt")
    weights = sum(4 * parameter.numel() for parameter in loaded.model.parameters())
    assert after == os.path.getsize(tmp_path / "stripped.pt")
    assert weights <= after <= weights + 64_000
    if kind == "run":
        assert before > 3 * weights  # two moments of the optimizer beside the weights
    original, stripped = load(source), load(tmp_path / "stripped.pt")
    assert same_weights(stripped.model.state_dict(), original.model.state_dict())
    assert stripped.transform.settings() == original.transform.settings()
    rankings = [ZeroShotClassifier(model, LABELS, TEMPLATES)(pictures) for model in (original, stripped)]
    assert rankings[0] == rankings[1]


def test_a_part_of_a_larger_storage_is_stripped_alone(tmp_path: Path):
    make_run(tmp_path / "run")
    payload = read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    vast = torch.zeros(2_000_000)
    vast[:16] = payload["state_dict"]["model.image_projection"][0]
    payload["state_dict"]["model.image_tower.trunk.norm.bias"] = vast[:64]
    write(tmp_path / "views.ckpt", payload)
    _, after, _ = strip(tmp_path / "views.ckpt", tmp_path / "stripped.pt")
    assert after < sum(4 * t.numel() for t in load(tmp_path / "run").model.parameters()) + 64_000


def test_a_folder_without_checkpoint_and_an_unknown_file_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="a folder without checkpoints"):
        load(tmp_path)
    torch.save({"weights": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt.*weights"):
        load(tmp_path / "other.pt")


def test_weights_that_do_not_fit_are_named(run: Path, tmp_path: Path):
    payload = read(run / "checkpoints" / "last.ckpt")
    del payload["state_dict"]["model.logit_scale"]
    write(tmp_path / "last.ckpt", payload)
    with pytest.raises(UserError, match="logit_scale"):
        load(tmp_path / "last.ckpt")
