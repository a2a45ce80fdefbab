"""Folders of transformers: features as recorded, every choice that matters is seen, and hostile folders are refused."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import folder_of
from recorded_towers import BOTH, TOLERANCE, assert_as_recorded, deviations, recorded
from safetensors.torch import load_file, save_file
from torch import Tensor

import openslip
from openslip.errors import UserError
from openslip.inference.formats import huggingface_clip
from openslip.inference.formats.openslip import write
from openslip.inference.layouts import huggingface, siglip
from openslip.text.bare_ids import BareIds

NAMES = {"transformers_clip": BOTH, "transformers_clip_gelu_eos": BOTH, "transformers_siglip": BOTH | {"logit_bias"}}


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_recorded_ones_and_stay_after_strip(name: str, tmp_path: Path):
    bundle = openslip.load(folder_of(name, tmp_path / "folder"))
    assert_as_recorded(bundle, name, NAMES[name])
    assert isinstance(bundle.tokenizer, BareIds)
    write(bundle, tmp_path / "stripped.ckpt")
    again = openslip.load(tmp_path / "stripped.ckpt")
    assert_as_recorded(again, name, NAMES[name])
    assert again.transform.settings() == bundle.transform.settings()


@pytest.mark.parametrize("name", NAMES)
def test_weights_may_be_a_pickled_state_dict_or_in_shards(name: str, tmp_path: Path):
    folder = folder_of(name, tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    old = {"text_model.embeddings.position_ids": torch.arange(12)[None]}  # up to version 4.31
    torch.save(weights | old, folder / "pytorch_model.bin")
    assert_as_recorded(openslip.load(folder), name, NAMES[name])
    (folder / "pytorch_model.bin").unlink()
    shards = {key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(weights)}
    for shard in set(shards.values()):
        save_file({key: weights[key] for key in weights if shards[key] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert_as_recorded(openslip.load(folder), name, NAMES[name])


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "activation of the images": ("transformers_clip", {"vision_config__hidden_act": "gelu"}),
    "activation of the texts": ("transformers_clip_gelu_eos", {"text_config__hidden_act": "quick_gelu"}),
    "exact gelu": ("transformers_siglip", {"vision_config__hidden_act": "gelu"}),
    "epsilon of the images": ("transformers_clip", {"vision_config__layer_norm_eps": 1e-2}),
    "epsilon of the texts": ("transformers_siglip", {"text_config__layer_norm_eps": 1e-2}),
    "heads of the images": ("transformers_clip", {"vision_config__num_attention_heads": 2}),
    "heads of the texts": ("transformers_siglip", {"text_config__num_attention_heads": 2}),
    "end token": ("transformers_clip_gelu_eos", {"text_config__eos_token_id": 58}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_only_the_config_says_moves_the_features(change: str, tmp_path: Path):
    name, changes = CHANGES[change]
    bundle = openslip.load(folder_of(name, tmp_path, **changes))
    assert max(deviations(bundle, recorded(name)).values()) > 3 * TOLERANCE


def swapped(weights: dict[str, Tensor], first: str, second: str) -> dict[str, Tensor]:
    def other(name: str) -> str:
        return name.replace(first, second) if first in name else name.replace(second, first)

    return {other(name): weight for name, weight in weights.items()}


WEIGHT_FAULTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "queries for keys": lambda w: swapped(w, ".q_proj.", ".k_proj."),
    "the norms of a block": lambda w: swapped(w, "layer_norm1", "layer_norm2"),
    "the norms of the images": lambda w: swapped(w, "pre_layrnorm", "post_layernorm"),
}


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_exchanged_weights_are_seen(fault: str, tmp_path: Path):
    folder = folder_of("transformers_clip", tmp_path)
    weights = WEIGHT_FAULTS[fault](load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors")
    assert max(deviations(openslip.load(folder), recorded("transformers_clip")).values()) > TOLERANCE


def test_a_projection_that_is_not_transposed_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = folder_of("transformers_siglip", tmp_path)
    monkeypatch.setattr(huggingface, "PROJECTIONS", {})
    with pytest.raises(UserError, match=r"1 missing: text_projection; 1 unexpected: text_projection.weight"):
        openslip.load(folder)
    monkeypatch.undo()
    square = load_file(folder / "model.safetensors")
    square["text_model.head.weight"] = square["text_model.head.weight"].T.contiguous()
    save_file(square, folder / "model.safetensors")
    assert max(deviations(openslip.load(folder), recorded("transformers_siglip")).values()) > TOLERANCE


def test_keys_for_queries_in_the_pooling_head_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    split = siglip.split_pool

    def wrong(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return split({key: w.roll(48, 0) if "attn_pool.in_proj" in key else w for key, w in weights.items()})

    monkeypatch.setattr(siglip, "split_pool", wrong)
    bundle = openslip.load(folder_of("transformers_siglip", tmp_path))
    assert deviations(bundle, recorded("transformers_siglip"))["image_features"] > TOLERANCE


def test_a_choice_must_agree_with_the_config(tmp_path: Path):
    folder = folder_of("transformers_clip", tmp_path)
    openslip.load(folder, activation="quickgelu", image_heads=4, text_heads=4)
    choices: list[dict[str, Any]] = [{"activation": "gelu"}, {"image_heads": 2}, {"text_heads": 8}]
    for choice in choices:
        with pytest.raises(UserError, match=r"the file says"):
            openslip.load(folder, **choice)


def test_metaclip_2_never_pools_the_largest_id(tmp_path: Path):
    bundle = openslip.load(folder_of("transformers_clip", tmp_path, model_type="metaclip_2"))
    assert bundle.tokenizer is not None
    assert bundle.tokenizer.settings()["pooled"] == "first"
    assert bundle.tokenizer.lengths(torch.tensor([[5, 2, 9, 2]])).tolist() == [2]


def write_json(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


SQUARE = {"height": 24, "width": 24}
FIRST = {"size": 24, "crop_size": 24, "resample": 3, "do_center_crop": True}
PREPROCESSING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as in the first files": (
        FIRST | {"feature_extractor_type": "CLIPFeatureExtractor"},
        {"interpolation": "bicubic", "crop": "floor"},
    ),
    "a larger resize": ({"size": {"shortest_edge": 30}, "crop_size": 24}, {"resize_to": 30}),
    "squash": ({"size": SQUARE, "do_center_crop": False, "resample": 2}, {"resize": "squash"}),
    "other statistics": ({"size": 24, "crop_size": SQUARE, "image_mean": [0, 0, 0]}, {"mean": [0, 0, 0]}),
    "a ViT's": ({"image_processor_type": "ViTImageProcessor", "size": SQUARE}, {"resize": "squash"}),
}


@pytest.mark.parametrize("kind", PREPROCESSING)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_images_are_prepared_as_the_folder_says(kind: str, file: str, tmp_path: Path):
    folder, (content, expected) = folder_of("transformers_clip", tmp_path), PREPROCESSING[kind]
    write_json(folder, file, content if file.startswith("pre") else {"image_processor": content})
    settings = openslip.load(folder).transform.settings()
    assert {key: settings[key] for key in expected} == expected


REFUSED: dict[str, dict[str, Any]] = {
    "of another size": {"size": 48, "crop_size": 48},
    "not square": {"size": {"height": 24, "width": 30}, "do_center_crop": False},
    "lanczos": {"size": 24, "crop_size": 24, "resample": 1},
    "not rescaled": {"size": 24, "crop_size": 24, "do_rescale": False},
    "rescaled otherwise": {"size": 24, "crop_size": 24, "rescale_factor": 1.0},
    "of an unknown class": {"size": 24, "image_processor_type": "os.system"},
    "not finite": {"size": 24, "crop_size": 24, "image_std": [0, 1, 1]},
    "a list": {"size": [24]},
    "text": {"size": 24, "crop_size": 24, "image_mean": "half"},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_preprocessing_that_is_not_ours_is_refused(kind: str, tmp_path: Path):
    folder = folder_of("transformers_clip", tmp_path)
    write_json(folder, "preprocessor_config.json", REFUSED[kind])
    with pytest.raises(UserError, match=r"preprocessor_config\.json: .*load it with hf:"):
        openslip.load(folder)


def test_a_model_of_another_type_is_named_with_the_way_to_load_it(tmp_path: Path):
    folder = folder_of("transformers_clip", tmp_path, model_type="chinese_clip")
    with pytest.raises(UserError, match=r"of type chinese_clip: load it with hf:"):
        openslip.load(folder)


CONFIG_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "code of its own": ({"auto_map": {"AutoModel": "evil.Model"}}, r"names code of its own \(auto_map"),
    "a class as activation": ({"text_config__hidden_act": "os.system"}, r"hidden_act is 'os.system'"),
    "a negative width": ({"vision_config__hidden_size": -48}, r"vision_config\.hidden_size is '-48'"),
    "a width in words": ({"text_config__hidden_size": "wide"}, r"text_config\.hidden_size is 'wide'"),
    "nothing finite": ({"text_config__layer_norm_eps": float("nan")}, r"layer_norm_eps is 'nan'"),
    "another depth": ({"text_config__num_hidden_layers": 3}, r"\d+ of \d+ weights matched; 12 missing"),
    "fewer blocks": ({"vision_config__num_hidden_layers": 1}, r"weights matched; 12 unexpected"),
    "another width": ({"text_config__intermediate_size": 96}, r"of another shape: text_tower"),
    "a huge depth": ({"text_config__num_hidden_layers": 10**9}, r"far larger than its weights"),
    "a huge vocabulary": ({"text_config__vocab_size": 10**12}, r"far larger than its weights"),
    "a nested list": ({"vision_config": [1, 2]}, r"vision_config is a list"),
    "no depth at all": ({"vision_config__num_channels": 1}, r"num_channels is 1; expected 3"),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_a_hostile_config_is_refused_by_name(fault: str, tmp_path: Path):
    changes, message = CONFIG_FAULTS[fault]
    folder = folder_of("transformers_clip", tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        openslip.load(folder)


class Evil:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch executed",))


def linked_out(folder: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    shutil.move(folder / "model.safetensors", outside)
    (folder / "model.safetensors").symlink_to(outside)


def named_out(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    write_json(folder, "model.safetensors.index.json", {"weight_map": {"logit_scale": "../outside.safetensors"}})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"logit_scale": Evil()}))


def wrong_sizes(folder: Path) -> None:
    header = json.dumps({"logit_scale": {"dtype": "F32", "shape": [10**6], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def without(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def piped(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def dangling(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "missing")


def no_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_json(folder, "model.safetensors.index.json", {"weight_map": {"logit_scale": "model-1.safetensors"}})


FILE_FAULTS: dict[Callable[[Path], None], str] = {
    linked_out: r"is a link out of its folder",
    named_out: r"names the file '\.\./outside\.safetensors': expected a file in this folder",
    pickled: r"could run code: the file is refused|cannot be read as a checkpoint",
    wrong_sizes: r"cannot be read as safetensors",
    truncated: r"cannot be read as safetensors",
    without: r"has no weights: expected model\.safetensors or pytorch_model\.bin",
    piped: r"has no weights|named pipe",
    dangling: r"is a link to a missing file",
    no_shard: r"names the file model-1\.safetensors, which is missing",
}


@pytest.mark.parametrize("damage", FILE_FAULTS, ids=lambda damage: damage.__name__)
def test_hostile_files_are_refused_by_name(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = folder_of("transformers_clip", tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    damage(folder)
    with pytest.raises(UserError, match=FILE_FAULTS[damage]):
        openslip.load(folder)
    assert not (tmp_path / "executed").exists()


def test_links_inside_the_cache_of_the_hub_are_followed(tmp_path: Path):
    snapshot, blobs = tmp_path / "models--o--n/snapshots/abc", tmp_path / "models--o--n/blobs"
    folder_of("transformers_clip", snapshot)
    blobs.mkdir()
    for file in list(snapshot.iterdir()):
        shutil.move(file, blobs / file.name)
        file.symlink_to(Path("../../blobs") / file.name)
    assert_as_recorded(openslip.load(snapshot), "transformers_clip", BOTH)


def test_a_folder_without_a_readable_config_is_no_model(tmp_path: Path):
    assert not huggingface_clip.detect(tmp_path / "missing")
    for content in ("", "[1]", "{", '{"model_type": ["clip"]}'):
        (tmp_path / "config.json").write_text(content)
        assert not huggingface_clip.detect(tmp_path)
