"""`openslip verify` on checkpoints of other libraries: tests/data/towers, and a folder of other sizes."""

import json
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded_towers import FOLDER
from safetensors.torch import load_file, save_file
from tower_files import write_towers

from openslip.__main__ import run as openslip
from openslip.verify import compare
from openslip.verify.deviation import Row
from openslip.verify.towers import QUANTITIES, tower_rows

TRANSFORMERS = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers computes the outputs")
IMAGE = {"image_features", "image_features_normalized", "logits_per_image"}
TEXT = {"text_features", "text_features_normalized", "logits_per_image"}
CAPTIONS = {"caption_labels", "caption_logits", "caption_logits_full", "caption_loss", "contrastive_loss"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    write_towers(folder)
    return folder


def copied(other: Path, name: str, folder: Path) -> Path:
    """Copy the files of one name, and return the checkpoint."""
    for path in other.glob(f"{name}*"):
        if path.name.split(".")[0] in (name, f"{name}_io"):
            shutil.copyfile(path, folder / path.name)
    (checkpoint,) = (path for path in folder.glob(f"{name}.*") if path.suffix != ".json")
    return checkpoint


def out_of_tolerance(rows: list[Row]) -> set[str]:
    return {row.quantity.split(": ")[-1] for row in rows if not row.ok}


def arrays_of(folder: Path) -> dict[str, list[str]]:
    return {path.name.removesuffix("_io.npz"): np.load(path).files for path in folder.glob("*_io.npz")}


def test_the_recorded_towers_agree_and_each_array_is_compared_or_has_a_reason():
    rows = compare(FOLDER, "cpu", "float32")
    assert [row.line(0) for row in rows if not row.ok] == []
    arrays = arrays_of(FOLDER)
    assert len(rows) == sum(
        len({*names} - {"images", "text"}) * (2 if name == "openai_vit" else 1) for name, names in arrays.items()
    )
    assert sum(row.quantity.startswith("openai_vit_archive.pt: ") for row in rows) == 6
    skipped = {row.quantity.split(": ")[-1] for row in rows if row.deviation is None}
    assert skipped == {*CAPTIONS, "image_tokens", "attention_mask"}
    assert all(row.note for row in rows if row.deviation is None)


def test_towers_of_other_sizes_heads_and_activations_agree(other: Path):
    rows = compare(other, "cpu", "float32")
    assert [row.line(0) for row in rows if not row.ok] == []
    for name, arrays in arrays_of(other).items():
        compared = {row.quantity.split(": ")[-1] for row in rows if row.quantity.startswith(f"{name}.")}
        assert compared == {*arrays} - {"images", "text"}, name


def test_each_quantity_agrees_in_float64_and_one_per_cent_on_it_is_seen(tmp_path: Path):
    for name in ("facebook_slip", "transformers_siglip", "open_clip_coca", "big_vision_siglip"):
        copied(FOLDER, name, tmp_path)
    rows = compare(tmp_path, "cpu", "float64")
    assert [row.line(0) for row in rows if not row.ok] == []
    assert {row.quantity.split(": ")[-1] for row in rows if row.deviation is not None} == QUANTITIES.keys()
    for path in tmp_path.glob("*_io.npz"):
        arrays = dict(np.load(path))
        changed = {key: array if key in ("images", "text") else array * 1.01 for key, array in arrays.items()}
        np.savez(path, allow_pickle=False, **changed)
    changed = compare(tmp_path, "cpu", "float32")
    assert len(changed) == len(rows)
    assert [row.line(0) for row in changed if row.ok and row.deviation is not None] == []


@pytest.mark.parametrize(
    ("name", "weight", "seen"),
    [
        ("quick", "visual.transformer.resblocks.0.mlp.c_fc.weight", IMAGE),
        ("conv", "visual.layer1.0.bn1.running_var", IMAGE),
        ("captions", "visual.attn_pool.ln_k.weight", IMAGE),
        ("captions", "text.cls_emb", TEXT),
        ("sigmoid", "text.text_projection.bias", TEXT),
        ("plain_vit", "logit_scale", {"logit_scale_exp", "logits_per_image"}),
        ("trained_slip", "image_mlp.bn1.running_var", {"ssl_features"}),
        ("trained_simclr", "visual.norm.weight", {"image_trunk", "ssl_features"}),
        ("iterations", "encode_text.text_projection.bias", TEXT),
        pytest.param("hub_sigmoid", "logit_bias", {"logit_bias", "logits_per_image"}, marks=TRANSFORMERS),
        pytest.param("jax", "params/t", {"logit_scale_exp", "logits_per_image"}, marks=TRANSFORMERS),
        pytest.param("jax_scan", "params/txt/Encoder_0/encoderblock/LayerNorm_0/scale", TEXT, marks=TRANSFORMERS),
    ],
)
def test_one_per_cent_on_a_weight_is_seen(other: Path, tmp_path: Path, name: str, weight: str, seen: set[str]):
    checkpoint = copied(other, name, tmp_path)
    change_weight(checkpoint, weight)
    assert out_of_tolerance(tower_rows(tmp_path, "cpu", "float32")) >= seen


def change_weight(checkpoint: Path, name: str) -> None:
    """Multiply a weight by 1.01; `module.` is added where the file has it."""
    if checkpoint.suffix == ".npz":
        arrays = dict(np.load(checkpoint))
        arrays[name] = arrays[name] * np.float32(1.01)
        np.savez(checkpoint, allow_pickle=False, **arrays)
    elif checkpoint.suffix == ".safetensors":
        weights = load_file(checkpoint)
        weights[name] = weights[name] * 1.01
        save_file(weights, checkpoint)
    else:
        content = torch.load(checkpoint, weights_only=True)
        weights = content.get("state_dict", content.get("model", content))
        key = name if name in weights else f"module.{name}"
        weights[key] = weights[key] * 1.01
        torch.save(content, checkpoint)


@pytest.mark.parametrize(
    ("name", "keys", "value", "seen"),
    [
        ("quick", ("config", "quick_gelu"), False, IMAGE | TEXT),
        ("exact", ("config", "quick_gelu"), True, IMAGE | TEXT),
        ("tanh", ("config", "text_cfg", "act_kwargs"), None, TEXT),
        ("quick", ("config", "vision_cfg", "head_width"), 20, IMAGE),
        ("quick", ("config", "text_cfg", "heads"), 4, TEXT),
        ("conv", ("config", "vision_cfg", "head_width"), 64, IMAGE),
        ("captions", ("config", "vision_cfg", "attn_pooler_heads"), 4, IMAGE),
        ("sigmoid", ("config", "timm_arguments", "num_heads"), 4, IMAGE),
        ("sigmoid", ("config", "text_cfg", "norm_kwargs"), None, TEXT),
        ("trained_slip", ("config", "vision_heads"), 3, {*IMAGE, "image_trunk", "ssl_features"}),
        ("trained_clip", ("config", "transformer_heads"), 4, TEXT),
        ("iterations", ("config", "dims", "vh"), 3, IMAGE),
        ("iterations", ("config", "dims", "th"), 3, TEXT),
        pytest.param("hub_end", ("config", "text_config", "hidden_act"), "quick_gelu", TEXT, marks=TRANSFORMERS),
        pytest.param("hub_end", ("config", "text_config", "eos_token_id"), 2, TEXT, marks=TRANSFORMERS),
        pytest.param("hub_old", ("config", "vision_config", "num_attention_heads"), 4, IMAGE, marks=TRANSFORMERS),
        pytest.param("jax", ("dims", "heads"), 4, {"jax.npz"}, marks=TRANSFORMERS),  # the file says 3
    ],
)
def test_a_wrong_configuration_is_seen(
    other: Path, tmp_path: Path, name: str, keys: tuple[str, ...], value: object, seen: set[str]
):
    copied(other, name, tmp_path)
    path = tmp_path / f"{name}.json"
    description = entry = json.loads(path.read_text())
    for key in keys[:-1]:
        entry = entry[key]
    assert entry[keys[-1]] != value
    entry[keys[-1]] = value
    path.write_text(json.dumps(description))
    assert out_of_tolerance(tower_rows(tmp_path, "cpu", "float32")) >= seen


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def keep_only_a_loss(path: Path) -> None:
    np.savez(path, allow_pickle=False, images=np.load(path)["images"], caption_loss=np.float32(1))


def add_another_array(path: Path) -> None:
    np.savez(path, allow_pickle=False, **np.load(path), rotation=np.zeros(2))


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("trained_clip.pt", cut, "cannot be read as a checkpoint"),
        ("trained_clip.pt", Path.unlink, "no checkpoint of this name is beside its outputs"),
        ("trained_clip.json", cut, "trained_clip.json cannot be read as JSON"),
        ("trained_clip.json", Path.unlink, "give --image-heads"),
        ("trained_clip_io.npz", cut, "BadZipFile"),
        ("trained_clip_io.npz", keep_only_a_loss, "trained_clip_io.npz holds nothing that can be compared"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_row_and_the_others_are_compared(
    other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: Callable[[Path], Any], said: str
):
    copied(other, "trained_clip", tmp_path)
    copied(other, "trained_simclr", tmp_path)
    damage(tmp_path / file)
    assert openslip(["verify", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if " OUT " in line]
    assert line.startswith("trained_clip")
    assert said in line
    assert f"2 of 3 quantities within tolerance (cpu, float32; {tmp_path})" in printed


def test_what_is_not_compared_says_why(other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copied(other, "trained_simclr", tmp_path)
    add_another_array(tmp_path / "trained_simclr_io.npz")
    shutil.copyfile(other / "trained_clip.pt", tmp_path / "alone.pt")
    assert openslip(["verify", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    skipped = {line.split("  ")[0]: line.split("  ")[-1] for line in lines if "  skipped  " in line}
    assert skipped == {
        "alone.pt": "no recorded outputs of this name",
        "trained_simclr.pt: rotation": "openslip verify knows no quantity of this name",
    }


def test_a_training_checkpoint_of_open_clip_takes_its_choices_from_the_configuration(other: Path, tmp_path: Path):
    for name in ("quick", "exact", "tanh", "conv"):
        weights = load_file(copied(other, name, tmp_path))
        (tmp_path / f"{name}.safetensors").unlink()
        torch.save(
            {"epoch": 2, "state_dict": {f"module.{key}": value for key, value in weights.items()}},
            tmp_path / f"{name}.pt",
        )
    rows = tower_rows(tmp_path, "cpu", "float32")
    assert len(rows) == 4 * 6
    assert [row.line(0) for row in rows if not row.ok] == []


def test_formats_in_which_a_fault_would_not_show_are_refused(other: Path, capsys: pytest.CaptureFixture[str]):
    assert openslip(["verify", str(other), "--dtype", "bfloat16"]) == 1
    assert "dtype='bfloat16' is too coarse to compare checkpoints" in capsys.readouterr().err
