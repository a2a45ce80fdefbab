"""Weights whose names become one name without their prefixes: refused, in every format."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded_towers import FOLDER
from safetensors.torch import load_file, save_file

import openslip
from openslip.errors import UserError
from openslip.inference.architecture import load_weights
from openslip.inference.files import unwrapped_weights
from openslip.inference.formats import big_vision
from openslip.inference.formats.openslip import model_weights
from openslip.inference.layouts.folder import sharded
from openslip.inference.torchscript import read_tensors

TWO = torch.ones(())


def refused(name: str, file: str = "") -> Any:
    return pytest.raises(UserError, match=rf"{re.escape(file)}.*it has two weights that are both named {name} once")


@pytest.mark.parametrize(
    ("file", "entry", "prefix", "choices"),
    [
        ("openai_vit.pt", None, "module.", {}),
        ("declip_ckpt.pth.tar", "model", "", {"image_heads": 3, "text_heads": 2}),
        ("facebook_clip.pt", "state_dict", "", {"image_heads": 4, "text_heads": 4}),
    ],
)
def test_a_weight_with_and_without_a_prefix(
    file: str, entry: str | None, prefix: str, choices: dict[str, Any], tmp_path: Path
):
    content = torch.load(FOLDER / file, weights_only=False)
    state = content[entry] if entry else content
    openslip.load(FOLDER / file, **choices)
    state[f"{prefix}logit_scale"] = TWO
    torch.save(content, tmp_path / "twice.pt")
    with refused("logit_scale", "twice.pt"):
        openslip.load(tmp_path / "twice.pt", **choices)


def test_weights_of_a_model_that_was_wrapped_twice_have_its_names():
    model = torch.nn.Linear(2, 3)
    twice = torch.nn.DataParallel(torch.nn.DataParallel(model))
    assert {*twice.state_dict()} == {"module.module.weight", "module.module.bias"}
    weights = unwrapped_weights(twice.state_dict())
    assert weights.keys() == model.state_dict().keys()


def test_a_text_weight_of_declip_with_and_without_its_prefix(tmp_path: Path):
    content = torch.load(FOLDER / "declip_ckpt.pth.tar", weights_only=False)
    content["model"]["positional_embedding"] = torch.ones(2)
    torch.save(content, tmp_path / "twice.pt")
    with refused("positional_embedding", "twice.pt"):
        openslip.load(tmp_path / "twice.pt", image_heads=3, text_heads=2)


def test_open_clips_weights_in_a_file_and_in_a_folder(tmp_path: Path):
    state = load_file(FOLDER / "open_clip_vit_gelu.safetensors") | {"module.logit_scale": TWO}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    with refused("logit_scale", "open_clip_model.safetensors"):
        openslip.load(tmp_path / "open_clip_model.safetensors", activation="gelu", image_heads=2, text_heads=2)
    described = json.loads((FOLDER / "open_clip_vit_gelu.json").read_text())["config"]
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
    with refused("logit_scale", str(tmp_path)):
        openslip.load(tmp_path)


def test_our_own_weights(tmp_path: Path):
    with refused("model.logit_scale"):
        model_weights(tmp_path, {"model.logit_scale": TWO, "module.model.logit_scale": TWO})
    with refused("weight"):
        load_weights(torch.nn.Linear(1, 1), {"weight": TWO, "module.weight": TWO, "bias": TWO})


ARRAY = np.ones(2, np.float32)


@pytest.mark.parametrize(
    ("names", "read", "name"),
    [
        (("params/x", "x"), big_vision.read_arrays, "x"),
        (("img/encoderblock/x", "img/encoderblock_1/x"), "unstacked", "img/encoderblock_1/x"),
        (("x/kernel", "x/scale"), "tensors", "x.weight"),
    ],
)
def test_arrays_of_big_vision(names: tuple[str, str], read: Any, name: str, tmp_path: Path):
    arrays = dict.fromkeys(names, ARRAY)
    file = tmp_path / "twice.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for member in arrays:
            with archive.open(f"{member}.npy", "w") as stream:
                np.save(stream, ARRAY)
    steps: dict[str, Callable[[Any], Any]] = {"unstacked": big_vision.unstacked, "tensors": big_vision.tensors}
    with refused(name):
        steps[read](arrays) if read in steps else read(file)


def test_a_weight_in_two_shards(tmp_path: Path):
    for shard in "ab":
        save_file({"x": TWO, shard: TWO + 1}, tmp_path / f"{shard}.safetensors")
    places = {"x": "a.safetensors", "a": "a.safetensors", "b": "b.safetensors"}
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": places}))
    with refused("x"):
        sharded(tmp_path, tmp_path / "index.json")


def test_a_dotted_name_in_a_torchscript_archive(tmp_path: Path):
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x01\x85K\x01\x85tR"
    module = b"c__torch__\nA\n)\x81}"
    inner = module + b"X\x01\x00\x00\x00b" + tensor + b"sb"
    outer = module + b"(X\x01\x00\x00\x00a" + inner + b"X\x03\x00\x00\x00a.b" + tensor + b"ub"
    with zipfile.ZipFile(tmp_path / "twice.pt", "w") as archive:
        for name, content in (("constants.pkl", b""), ("data.pkl", b"\x80\x02" + outer + b"."), ("data/0", bytes(4))):
            archive.writestr(f"r/{name}", content)
    with refused(r"a\.b"):
        read_tensors(tmp_path / "twice.pt")
