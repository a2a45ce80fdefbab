import argparse
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published_files import DIMS, random_state, training_checkpoint
from reference_folder import encode_image, encode_text, initial_state
from torch import Tensor

import openslip
from openslip.errors import UserError
from openslip.inference.choices import Choices
from openslip.inference.formats.slip import TO_OURS, TO_PUBLISHED, detect, from_published, import_checkpoint
from openslip.inference.layouts.keys import translate
from openslip.inference.strip import strip
from openslip.models.dual_encoder import DualEncoder
from openslip.verify.files import RECORDINGS, read_json

OFFICIAL = read_json(RECORDINGS / "official_models.json")
# Widths from which the heads can be read, since they are multiples of 64.
SMALL = replace(DIMS, vision_width=128, vision_depth=2, vision_heads=2)


def small_state(method: str = "slip") -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: tensor.detach() for name, tensor in initial_state(method, SMALL).items()}


def test_a_published_vit_small_loads_strips_to_its_weights_and_predicts_the_same(tmp_path: Path):
    state = random_state("SLIP_VITS16")
    arguments = argparse.Namespace(model="SLIP_VITS16", lr=np.float64(3e-3), wd=0.1, distributed=True, output_dir="./")
    torch.save(training_checkpoint(state, arguments), tmp_path / "slip_small.pt")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 300, 3), dtype=np.uint8))
    labels = ["man wearing armor", "a very long caption " * 30]

    loaded = openslip.load(tmp_path / "slip_small.pt")
    ranking = openslip.ZeroShotClassifier(loaded, labels, ["a {} in a movie."])(picture)

    before, after, _ = strip(tmp_path / "slip_small.pt", tmp_path / "stripped.pt")
    kept = sum(t.numel() * t.element_size() for name, t in state.items() if not name.startswith("image_mlp"))
    assert kept == 4 * 85_290_369  # the parameters of CLIP_VITS16
    assert kept < after < 1.01 * kept < before
    again = openslip.load(tmp_path / "stripped.pt")
    assert openslip.ZeroShotClassifier(again, labels, ["a {} in a movie."])(picture) == ranking

    assert again.tokenizer is not None
    assert again.tokenizer.settings() == {
        "context_length": 77,
        "truncation": "drop_end",
        "special_text": "token",
        "mask_token": False,
    }
    dims = replace(SMALL, image_size=224, vision_width=384, vision_depth=12, vision_heads=12)
    dims = replace(dims, text_width=512, text_heads=8, text_layers=12)
    model = again.model
    assert isinstance(model, DualEncoder)
    with torch.no_grad():
        image = again.transform(picture)[None]
        expected = encode_image(state, dims, image) @ state["image_projection"]
        torch.testing.assert_close(model.encode_image(image), expected, rtol=1e-3, atol=1e-4)
        text, lengths = again.tokenizer.encode(labels[:1])
        expected = encode_text(state, dims, text)
        found = model.encode_text(text, lengths)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "heads"),
    [
        (argparse.Namespace(model="SLIP_VITB16", lr=np.float32(1e-3)), 3),
        ({"model": "SLIP_VITS16"}, 3),
        (argparse.Namespace(lr=1e-3), 3),
        ({}, 3),
        ("of another form", 3),
        (None, 3),
    ],
)
def test_arguments_of_any_form_load_and_a_name_counts_only_with_its_width(arguments: Any, heads: int):
    torch.manual_seed(0)
    wide = replace(SMALL, vision_width=192, vision_depth=1)
    checkpoint = training_checkpoint(initial_state("slip", wide), arguments)
    if arguments is None:
        del checkpoint["args"]
    architecture, state = import_checkpoint(checkpoint)
    assert architecture["image_tower"]["arguments"]["num_heads"] == heads
    assert "image_projection" in state
    assert not any(name.startswith(("module", "image_mlp")) for name in state)


def test_heads_are_read_by_name_and_by_width():
    for name in ("SLIP_VITS16", "CLIP_VITB16", "SIMCLR_VITL16"):
        model = OFFICIAL[name]
        with torch.device("meta"):
            state = {key: torch.empty(shape) for key, shape in model["state"].items()}
        with pytest.raises(UserError, match=f"image_heads=8: the file says {model['heads']}; leave image_heads out"):
            import_checkpoint({"state_dict": state, "args": {"model": name}}, Choices(image_heads=8))
        for arguments in (argparse.Namespace(model=name), None):
            architecture, weights = import_checkpoint({"state_dict": state, "args": arguments})
            assert architecture["image_tower"]["arguments"]["num_heads"] == model["heads"]
            assert ("text_tower" in architecture) == (not name.startswith("SIMCLR"))
            count = sum(math.prod(tensor.shape) for tensor in weights.values())
            head = sum(
                math.prod(shape)
                for key, shape in model["state"].items()
                if key.startswith("image_mlp") and "running" not in key and "num_batches" not in key
            )
            assert count == model["parameters"] - head


@pytest.mark.parametrize("name", ["CLIP_VITB16", "SLIP_VITS16", "SIMCLR_VITL16"])
def test_every_published_name_maps_to_ours_and_back(name: str):
    names = list(OFFICIAL[name]["state"])
    ours = from_published(dict.fromkeys(names))
    assert len(ours) == len(names)
    assert [translate(key, TO_PUBLISHED) for key in ours] == names
    assert translate("visual.norm.bias", TO_OURS) == "model.image_tower.trunk.norm.bias"
    assert translate("transformer.resblocks.11.mlp.c_fc.weight", TO_OURS) == "model.text_tower.blocks.11.fc1.weight"
    assert translate("vision.norm.bias", TO_OURS) is None


def test_keys_that_do_not_fit_are_named():
    state = small_state()
    with pytest.raises(UserError, match=r"unknown keys visual_extra\.weight"):
        import_checkpoint({"state_dict": state | {"visual_extra.weight": torch.ones(1)}})
    with pytest.raises(UserError, match=r"unknown keys visual\.extra\.weight"):
        import_checkpoint({"state_dict": state | {"visual.extra.weight": torch.ones(1)}})
    for missing in ("ln_final.bias", "token_embedding.weight", "visual.blocks.1.norm1.weight", "logit_scale"):
        with pytest.raises(UserError, match=missing.replace(".", r"\.")):
            import_checkpoint({"state_dict": {key: value for key, value in state.items() if key != missing}})
    with pytest.raises(UserError, match=r"text_projection has shape \[3, 3\]"):
        import_checkpoint({"state_dict": state | {"text_projection": torch.ones(3, 3)}})
    with pytest.raises(UserError, match=r"no visual\.cls_token"):
        import_checkpoint({"state_dict": {"conv1.weight": torch.ones(1)}})
    narrow = small_state("simclr")
    narrow["visual.cls_token"] = torch.ones(1, 1, 100)
    with pytest.raises(UserError, match=r"width 100.*give --image-heads"):
        import_checkpoint({"state_dict": narrow})


def test_other_files_are_not_taken_for_published_ones(tmp_path: Path):
    torch.save({"state_dict": {"conv1.weight": torch.ones(1)}}, tmp_path / "other.pt")
    torch.save(training_checkpoint(small_state(), None), tmp_path / "slip.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert [detect(tmp_path / name) for name in ("other.pt", "slip.pt", "text.pt")] == [False, True, False]


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


def test_a_checkpoint_that_pickles_anything_else_is_refused_by_name_and_nothing_runs(tmp_path: Path):
    mark = tmp_path / "PWNED"
    hostile = argparse.Namespace(model="SLIP_VITB16", hook=Evil(mark))
    torch.save(training_checkpoint(small_state(), hostile), tmp_path / "slip_base.pt")
    for act in (openslip.load, lambda path: strip(path, tmp_path / "stripped.pt")):
        with pytest.raises(UserError, match=rf"{os.system.__module__}\.system"):
            act(tmp_path / "slip_base.pt")
    assert not mark.exists()
    assert not (tmp_path / "stripped.pt").exists()


def test_a_checkpoint_whose_config_names_another_target_is_refused_and_nothing_runs(tmp_path: Path):
    mark = tmp_path / "PWNED"
    torch.save(training_checkpoint(small_state(), argparse.Namespace(model="SLIP_TINY")), tmp_path / "slip.pt")
    strip(tmp_path / "slip.pt", tmp_path / "stripped.pt")
    content = torch.load(tmp_path / "stripped.pt", weights_only=True)
    content["openslip"]["architecture"]["image_tower"]["arguments"]["act_layer"] = {
        "_target_": "os.system",
        "command": f"touch {mark}",
    }
    torch.save(content, tmp_path / "hostile.pt")
    with pytest.raises(UserError, match=r"os\.system"):
        openslip.load(tmp_path / "hostile.pt")
    assert not mark.exists()
