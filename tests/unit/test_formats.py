"""Files in which a model comes: names that wrappers of a module leave, and safetensors."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_models import Pictures, tokenizer, transform
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import openslip
from openslip.errors import UserError
from openslip.inference import formats
from openslip.inference.architecture import build_model
from openslip.inference.bundle import Bundle
from openslip.inference.choices import ACTIVATIONS
from openslip.inference.files import write
from openslip.inference.formats import openslip as ours
from openslip.inference.formats.slip import to_published
from openslip.inference.strip import strip

TOWER = {
    "_target_": "openslip.models.timm_tower.TimmTower",
    "name": "vit_base_patch16_224",
    "image_size": 16,
    "arguments": {"patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1},
}
TEXT = {"vocab_size": 49408, "context_length": 24, "width": 64, "depth": 1, "heads": 1}
DUAL: dict[str, Any] = {
    "_target_": "openslip.models.dual_encoder.DualEncoder",
    "image_tower": TOWER,
    "text_tower": {"_target_": "openslip.models.text_transformer.TextTransformer", **TEXT},
    "embed_dim": 12,
    "logit_scale_init": 2.6593,
}
TEXTS = ["a red ring", "größe", "three dogs"]
WRAPPED: dict[str, Callable[[str], str]] = {
    "parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled, then parallel": lambda name: f"module._orig_mod.{name}",
    "parallel, then compiled": lambda name: f"_orig_mod.module.{name}",
    "compiled inside": lambda name: name.replace("blocks.0.", "blocks.0._orig_mod."),
    "compiled tower": lambda name: name.replace("visual.", "visual._orig_mod.").replace("tower.", "tower._orig_mod."),
}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(0)
    return Bundle(build_model(DUAL).eval(), tokenizer(), transform(), DUAL, torch.device("cpu"))


def assert_same(loaded: Bundle, bundle: Bundle) -> None:
    expected = bundle.model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())


def our_content(bundle: Bundle, rename: Callable[[str], str]) -> dict[str, Any]:
    entry = ours.describe(bundle.architecture, bundle.tokenizer, bundle.transform)
    return {"openslip": entry, "state_dict": {rename(k): tensor for k, tensor in bundle.model.state_dict().items()}}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("averaged", [False, True])
def test_names_that_wrappers_leave_are_taken_off_our_checkpoints(
    tmp_path: Path, bundle: Bundle, wrapper: str, averaged: bool
):
    rename, kind = WRAPPED[wrapper], "averaged." if averaged else "model."
    for number, wrapped in enumerate((lambda name: rename(kind + name), lambda name: kind + rename(name))):
        write(tmp_path / f"{number}.ckpt", our_content(bundle, wrapped))
        assert_same(openslip.load(tmp_path / f"{number}.ckpt"), bundle)


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_that_wrappers_leave_are_taken_off_published_checkpoints(tmp_path: Path, bundle: Bundle, wrapper: str):
    published = to_published(bundle.model, nn.Module())
    state = {WRAPPED[wrapper](name): tensor.detach() for name, tensor in published.items()}
    torch.save({"state_dict": state}, tmp_path / "published.pt")
    assert_same(openslip.load(tmp_path / "published.pt"), bundle)


def test_a_part_of_a_model_may_be_named_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Wrapping(nn.Module):
        def __init__(self, *, width: int) -> None:
            super().__init__()
            self.module = nn.Linear(width, width)

    monkeypatch.setattr("openslip.models.image_encoder.Wrapping", Wrapping, raising=False)
    monkeypatch.setattr(Wrapping, "__module__", "openslip.models.image_encoder")
    architecture = {"_target_": "openslip.models.image_encoder.Wrapping", "width": 3}
    written = Bundle(Wrapping(width=3), None, transform(), architecture, torch.device("cpu"))
    write(tmp_path / "a.ckpt", our_content(written, lambda name: f"model.{name}"))
    assert_same(openslip.load(tmp_path / "a.ckpt", allow=[architecture["_target_"]]), written)


def features(bundle: Bundle) -> tuple[Tensor, Tensor]:
    return bundle.encode_image([Pictures(3)[index].image for index in range(3)]), bundle.encode_text(TEXTS)


def test_safetensors_give_equal_features_and_hold_all_that_belongs_to_them(tmp_path: Path, bundle: Bundle):
    write(tmp_path / "whole.ckpt", our_content(bundle, lambda name: f"model.{name}"))
    before, after, _ = strip(tmp_path / "whole.ckpt", tmp_path / "small.safetensors")
    assert 0 < after < before + 10_000
    with safe_open(tmp_path / "small.safetensors", "pt") as file:  # as other programs read it
        assert set(file.keys()) == {f"model.{name}" for name in bundle.model.state_dict()}
        entry = json.loads(file.metadata()["openslip"])
    assert entry == ours.describe(bundle.architecture, bundle.tokenizer, bundle.transform)
    loaded = openslip.load(tmp_path / "small.safetensors")
    for one, other in zip(features(loaded), features(bundle), strict=True):
        assert torch.equal(one, other)
    strip(tmp_path / "small.safetensors", tmp_path / "back.ckpt")
    assert_same(openslip.load(tmp_path / "back.ckpt"), bundle)


@pytest.mark.parametrize("name", ["small.ckpt", "small.safetensors"])
def test_a_stripped_file_with_a_flipped_bit_gives_no_other_model(tmp_path: Path, bundle: Bundle, name: str):
    ours.write(bundle, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    numbers = random.Random(0)
    for place in [*(len(whole) * part // 8 for part in range(1, 8)), *(numbers.randrange(4000) for _ in range(8))]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << numbers.randrange(8)
        (tmp_path / name).write_bytes(flipped)
        try:
            loaded, refusal = openslip.load(tmp_path / name), ""
        except UserError as error:
            loaded, refusal = bundle, str(error)
        assert_same(loaded, bundle)  # a bit of the padding, or of a name that nothing reads, changes nothing
        assert loaded.transform.settings() == bundle.transform.settings()
        assert not refusal or refusal.startswith(f"checkpoint {tmp_path / name}")


def test_the_damaged_file_of_an_exported_folder_is_named(tmp_path: Path, bundle: Bundle):
    file = tmp_path / "model.safetensors"
    ours.write(bundle, file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"checkpoint {file} is damaged \(CRC-32\)"):
        openslip.load(tmp_path)


@pytest.mark.parametrize("name", ["small.ckpt", "small.safetensors"])
def test_a_stripped_file_keeps_the_provenance(tmp_path: Path, bundle: Bundle, name: str):
    content = our_content(bundle, lambda name: f"model.{name}")
    said = {"starts": [{"commit": "abc", "dates": ["2026-01-02"], "hardware": {"gpus": []}}], "training_seconds": 1.5}
    content["openslip"]["provenance"] = said
    write(tmp_path / "whole.ckpt", content)
    strip(tmp_path / "whole.ckpt", tmp_path / name)
    assert openslip.load(tmp_path / name).provenance == said
    content["openslip"]["provenance"] = {"starts": torch.ones(3)}
    write(tmp_path / "hostile.ckpt", content)
    with pytest.raises(UserError, match=r"its `provenance` is .*; expected a dict of plain values"):
        openslip.load(tmp_path / "hostile.ckpt")


def test_weights_that_share_their_memory_are_written(tmp_path: Path):
    model = nn.ParameterDict({"a": nn.Parameter(torch.ones(4, 2))})
    state = {"model.a": model["a"].detach(), "model.b": model["a"].detach(), "model.c": model["a"].detach().T}
    write(tmp_path / "tied.safetensors", {"openslip": {}, "state_dict": state})
    with safe_open(tmp_path / "tied.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in state.items())


def test_safetensors_of_others_and_damaged_ones_are_refused(tmp_path: Path):
    save_file({"a": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors is in none of the known formats .*; its weights: a"):
        openslip.load(tmp_path / "other.safetensors")
    whole = (tmp_path / "other.safetensors").read_bytes()
    for number, content in enumerate((b"", whole[:-4], b"\xff" * 100, whole[:20])):
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(content)
        with pytest.raises(UserError, match=rf"{number}\.safetensors: cannot be read as safetensors"):
            openslip.load(file)
    save_file({"a": torch.ones(3)}, tmp_path / "json.safetensors", {"openslip": "{"})
    with pytest.raises(UserError, match=r"its `openslip` entry cannot be read as JSON"):
        openslip.load(tmp_path / "json.safetensors")


def test_choices_must_agree_with_what_our_file_says(tmp_path: Path, bundle: Bundle):
    path = tmp_path / "stripped.ckpt"
    ours.write(bundle, path)
    openslip.load(path, image_heads=1, text_heads=1)
    contradictions: list[tuple[dict[str, Any], str]] = [
        ({"image_heads": 2}, "image_heads=2: the file says 1"),
        ({"text_heads": 4}, "text_heads=4: the file says 1"),
        ({"activation": "gelu_tanh"}, "activation=gelu_tanh: the file says gelu, quick_gelu"),
        ({"activation": "gelu"}, "activation=gelu: the file says gelu, quick_gelu"),
    ]
    for choices, says in contradictions:
        with pytest.raises(UserError, match=says):
            openslip.load(path, **choices)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quickgelu"])
def test_an_activation_that_both_towers_have_agrees(tmp_path: Path, activation: str):
    name = ACTIVATIONS[activation]
    image = TOWER | {"arguments": TOWER["arguments"] | {"act_layer": name}}
    architecture = DUAL | {"image_tower": image, "text_tower": DUAL["text_tower"] | {"activation": name}}
    model = build_model(architecture)
    path = tmp_path / "stripped.ckpt"
    ours.write(Bundle(model, tokenizer(), transform(), architecture, torch.device("cpu")), path)
    openslip.load(path, activation=activation)
    for other in ACTIVATIONS.keys() - {activation}:
        with pytest.raises(UserError, match=f"activation={other}: the file says {name}; leave activation out"):
            openslip.load(path, activation=other)


@pytest.mark.parametrize("name", formats.names())
def test_a_named_format_that_the_file_is_not_in_is_refused(name: str, tmp_path: Path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "weights.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"other": 1}')
    for place in ("weights.pt", "folder"):
        with pytest.raises(UserError, match=f"{place} is not in the format {name}"):
            openslip.load(tmp_path / place, format=name)
    (tmp_path / "damaged.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"damaged\.pt"):
        openslip.load(tmp_path / "damaged.pt", format=name)
