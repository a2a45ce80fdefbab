"""Checkpoints of big_vision: features as recorded, in all their spellings, and hostile files refused."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_towers import BOTH, FOLDER, TOLERANCE, assert_as_recorded, deviations, recorded

import openslip
from openslip.errors import UserError
from openslip.inference.formats import big_vision
from openslip.inference.formats.openslip import write

NAMES = ["big_vision_siglip", "big_vision_siglip_scan"]
Arrays = dict[str, np.ndarray]
FEATURES = BOTH - {"logits_per_image", "logit_scale_exp"}


def arrays_of(name: str) -> Arrays:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_recorded_ones_and_stay_after_strip(name: str, tmp_path: Path):
    bundle = openslip.load(FOLDER / f"{name}.npz")
    assert_as_recorded(bundle, name, FEATURES)
    write(bundle, tmp_path / "stripped.safetensors")
    assert_as_recorded(openslip.load(tmp_path / "stripped.safetensors"), name, FEATURES)


def test_the_logits_are_the_recorded_ones_with_scale_and_bias():
    bundle, io = openslip.load(FOLDER / "big_vision_siglip.npz"), recorded("big_vision_siglip")
    logits = io["logits"] if io["logits"].ndim == 2 else io["logits"][None]
    units = [io[f"{kind}_features_normalized"] for kind in ("image", "text")]
    expected = bundle.scale() * units[0] @ units[1].T + bundle.bias()
    assert (expected - logits).abs().max() <= TOLERANCE * logits.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_old_files_have_no_prefix(name: str, tmp_path: Path):
    arrays: dict[str, Any] = {key.removeprefix("params/"): array for key, array in arrays_of(name).items()}
    np.savez(tmp_path / "old.npz", **arrays)
    assert_as_recorded(openslip.load(tmp_path / "old.npz"), name, FEATURES)


def test_the_transform_squashes_to_half_and_half():
    settings = openslip.load(FOLDER / "big_vision_siglip.npz").transform.settings()
    half = [0.5, 0.5, 0.5]
    assert settings == {"size": 24, "mean": half, "std": half, "interpolation": "bicubic", "resize": "squash"}


def test_choices_must_agree_with_the_file():
    openslip.load(FOLDER / "big_vision_siglip.npz", activation="gelu_tanh", image_heads=4, text_heads=4)
    choices: list[dict[str, Any]] = [{"activation": "gelu"}, {"image_heads": 2}, {"text_heads": 8}]
    for choice in choices:
        with pytest.raises(UserError, match=r"the file says"):
            openslip.load(FOLDER / "big_vision_siglip.npz", **choice)


FAULTS = {"activation": ("ACTIVATION", "gelu"), "epsilon": ("NORM_EPS", 1e-2)}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_activation_or_epsilon_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(big_vision, *FAULTS[fault])
    bundle = openslip.load(FOLDER / "big_vision_siglip.npz")
    differing = deviations(bundle, recorded("big_vision_siglip"))
    assert min(differing[name] for name in FEATURES) > TOLERANCE


def exchanged(first: str, second: str) -> Callable[[Arrays], Arrays]:
    def other(name: str) -> str:
        return name.replace(first, second) if first in name else name.replace(second, first)

    return lambda arrays: {other(name): array for name, array in arrays.items()}


ARRAY_FAULTS: dict[str, Callable[[Arrays], Arrays]] = {
    "query and key": exchanged("/query/", "/key/"),
    "key and value": exchanged("/key/", "/value/"),
    "the norms": exchanged("/LayerNorm_0/", "/LayerNorm_1/"),
    "heads and their width": lambda arrays: {
        name: array.reshape(array.shape[0], 8, 4).swapaxes(1, 2) if name.endswith("query/kernel") else array
        for name, array in arrays.items()
    },
    "a transposed head": lambda arrays: arrays | {"params/txt/head/kernel": arrays["params/txt/head/kernel"].T},
}


@pytest.mark.parametrize("fault", ARRAY_FAULTS)
def test_exchanged_arrays_are_seen(fault: str, tmp_path: Path):
    arrays = ARRAY_FAULTS[fault](arrays_of("big_vision_siglip"))
    pool = "params/img/MAPHead_0/LayerNorm_"  # it has one norm only
    renamed: dict[str, Any] = {name.replace(f"{pool}1", f"{pool}0"): array for name, array in arrays.items()}
    np.savez(tmp_path / "model.npz", **renamed)
    bundle = openslip.load(tmp_path / "model.npz")
    assert max(deviations(bundle, recorded("big_vision_siglip")).values()) > TOLERANCE


class Evil:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch executed",))


def dropped(arrays: Arrays) -> Arrays:
    return {name: array for name, array in arrays.items() if name != "params/txt/head/bias"}


def cut(arrays: Arrays) -> Arrays:
    return arrays | {"params/txt/head/bias": np.zeros(7, np.float32)}


def split(array: np.ndarray) -> np.ndarray:
    """Return queries, keys and values of half as many heads, each twice as wide."""
    if array.shape == (32, 4, 8):
        return array.reshape(32, 2, 16)
    if array.shape == (4, 8):
        return array.reshape(2, 16)
    return array.reshape(2, 16, 32) if array.shape == (4, 8, 32) else array


HOSTILE: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "pickled": (lambda arrays: arrays | {"params/x": np.array([Evil()], object)}, r"holds pickled objects"),
    "unknown": (lambda arrays: arrays | {"params/x": np.zeros(2, np.float32)}, r"1 unexpected: x"),
    "missing": (dropped, r"1 missing: text_projection_bias"),
    "cut": (cut, r"of another shape: text_projection_bias \[7\]"),
    "of integers": (lambda arrays: arrays | {"params/t": np.zeros(1, np.int64)}, r"t is of int64; expected floats"),
    "without heads": (
        lambda arrays: {name: a.reshape(32, 32) if a.shape == (32, 4, 8) else a for name, a in arrays.items()},
        r"lacks img/Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel of three axes",
    ),
    "with other heads in a later layer": (
        lambda arrays: {
            name: split(a) if "img/Transformer/encoderblock_1/" in name else a for name, a in arrays.items()
        },
        r"img/Transformer/encoderblock_1/\S+/\w+/kernel has shape \[32, 2, 16\], and .*encoderblock_0.* has 4 heads",
    ),
    "with other heads in the pooling": (
        lambda arrays: {name: split(a) if "MAPHead" in name else a for name, a in arrays.items()},
        r"img/MAPHead_0/\S+/\w+/kernel has shape \[32, 2, 16\], and .*encoderblock_0.* has 4 heads",
    ),
    "with empty layers": (
        lambda arrays: arrays | {"params/img/Transformer/encoderblock/x": np.zeros((5, 0), np.float32)},
        r"encoderblock/x has shape \[5, 0\], and no elements",
    ),
    "of many layers": (
        lambda arrays: arrays | {"params/img/Transformer/encoderblock/x": np.zeros(1001, np.float16)},
        r"encoderblock/x has 1,001 layers; expected up to 1,000",
    ),
    "with a missing block": (
        lambda arrays: {name.replace("encoderblock_1/", "encoderblock_7/"): a for name, a in arrays.items()},
        r"some are missing",
    ),
    "of other channels": (
        lambda arrays: arrays | {"params/img/embedding/kernel": np.zeros((8, 8, 4, 32), np.float32)},
        r"9 patches of 4 channels",
    ),
    "with one patch too few": (
        lambda arrays: arrays | {"params/img/pos_embedding": np.zeros((1, 8, 32), np.float32)},
        r"8 patches of 3 channels",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_arrays_are_refused_by_name(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    change, message = HOSTILE[kind]
    changed: dict[str, Any] = change(arrays_of("big_vision_siglip"))
    np.savez(tmp_path / "model.npz", **changed)
    with pytest.raises(UserError, match=message):
        openslip.load(tmp_path / "model.npz")
    assert not (tmp_path / "executed").exists()


def test_a_zip_bomb_and_a_damaged_file_are_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("params/img/MAPHead_0/probe.npy", bytes(100 << 20))
    with pytest.raises(UserError, match=r"unpacks to 104,857,600: refused"):
        openslip.load(tmp_path / "bomb.npz")
    data = bytearray((FOLDER / "big_vision_siglip.npz").read_bytes())
    data[5000:5100] = bytes(100)
    (tmp_path / "damaged.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be read as npz"):
        openslip.load(tmp_path / "damaged.npz")


def test_other_files_are_not_taken_for_big_visions(tmp_path: Path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "text.npz").write_text("no zip")
    os.mkfifo(tmp_path / "pipe.npz")
    for name in ("other.npz", "text.npz", "pipe.npz", "missing.npz", "."):
        assert not big_vision.detect(tmp_path / name)
