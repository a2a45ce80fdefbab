"""A tower starts as that of an earlier run or a published checkpoint: LiT, and training on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from recorded_towers import FOLDER
from safetensors.torch import load_file, save_file
from shard_files import write_pairs
from stored_towers import TRANSFORM, parts_config, write_checkpoint
from trainings import SMALL, Training

import openslip
from openslip.config.build import Parts, build_parts
from openslip.errors import UserError
from openslip.inference.architecture import build_model
from openslip.inference.files import read
from openslip.run.checkpoints import newest_whole
from openslip.training.initial_weights import InitialWeights


def initial(parts: Parts, **options: Any) -> InitialWeights:
    return InitialWeights(parts.model, parts.tokenizer, TRANSFORM, **options)


def test_a_simclr_tower_becomes_the_image_tower_and_nothing_else_changes(tmp_path: Path):
    config = parts_config()
    tower = config["model"]["image_tower"]
    simclr = {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": tower}
    there = write_checkpoint(tmp_path / "simclr.ckpt", simclr)
    parts = build_parts(config)
    model = parts.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    initial(parts).load(None, {"image": {"weights": str(tmp_path / "simclr.ckpt")}, "text": {"weights": None}})
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, there[name] if name in there else before[name]), name
    assert not torch.equal(there["image_tower.trunk.pos_embed"], before["image_tower.trunk.pos_embed"])


def test_a_tower_of_another_shape_or_kind_is_refused_by_its_key(tmp_path: Path):
    config = parts_config()
    tower = config["model"]["image_tower"]
    wider = tower | {"arguments": tower["arguments"] | {"embed_dim": 48}}
    write_checkpoint(
        tmp_path / "wider.ckpt", {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": wider}
    )
    loader = initial(build_parts(config))
    path = str(tmp_path / "wider.ckpt")
    message = r"towers\.image\.weights=.*: its image tower differs from this run's \(size mismatch"
    with pytest.raises(UserError, match=message):
        loader.load(None, {"image": {"weights": path}})
    with pytest.raises(UserError, match=r"towers\.text\.weights=.*wider\.ckpt has no text tower"):
        loader.load(None, {"text": {"weights": path}})
    with pytest.raises(UserError, match=r"nowhere\.ckpt: no such file"):
        loader.load(None, {"image": {"weights": "nowhere.ckpt"}})


@pytest.mark.parametrize(("blocks", "differs"), [(1, "Unexpected"), (-1, "Missing")])
def test_a_tower_with_other_blocks_is_refused_by_their_names(tmp_path: Path, blocks: int, differs: str):
    config = parts_config()
    tower = config["model"]["image_tower"]
    depth = tower["arguments"]["depth"] + blocks
    other = tower | {"arguments": tower["arguments"] | {"depth": depth}}
    encoder = {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": other}
    write_checkpoint(tmp_path / "other.ckpt", encoder)
    message = rf"differs from this run's \({differs} key\(s\) in state_dict: .trunk\.blocks"
    with pytest.raises(UserError, match=message):
        initial(build_parts(config)).load(None, {"image": {"weights": str(tmp_path / "other.ckpt")}})


def test_a_locked_tower_keeps_its_weights_over_a_stop_although_their_file_is_gone(tmp_path: Path):
    write_pairs(tmp_path / "0.tar", 100)
    there = write_checkpoint(tmp_path / "earlier.ckpt", parts_config()["model"])
    run = [*SMALL, "data.source.shards=0.tar", "trainer.max_steps=9", "name=lit"]
    locked = ["towers.image.locked=true", "towers.image.weights=earlier.ckpt"]
    stopped = Training(tmp_path, *run, *locked, DISTURB="signal 5 0")
    assert stopped.wait() == 143, stopped.said()
    (tmp_path / "earlier.ckpt").unlink()
    resumed = Training(tmp_path, *run, *locked)
    assert resumed.wait() == 0, resumed.said()
    state = read(newest_whole(tmp_path / "runs" / "lit" / "checkpoints").path)["state_dict"]
    for name, tensor in there.items():
        if name.startswith("image_tower."):
            assert torch.equal(state[f"model.{name}"], tensor), name
    assert not torch.equal(state["model.text_projection"], there["text_projection"])


def test_what_a_file_does_not_say_is_given_beside_its_path(tmp_path: Path):
    state = load_file(FOLDER / "open_clip_vit_gelu.safetensors")
    width = state["token_embedding.weight"].shape[1]
    state["token_embedding.weight"] = torch.randn(49408, width, generator=torch.Generator().manual_seed(0))
    path = str(tmp_path / "bare.safetensors")
    save_file(state, path)
    choices: dict[str, Any] = {"activation": "gelu", "image_heads": 4, "text_heads": 4}
    there = openslip.load(path, **choices)
    transform = there.transform.settings()

    def new() -> InitialWeights:
        return InitialWeights(build_model(there.architecture), there.tokenizer, transform)

    untouched = {"image": {"weights": None}, "text": {"weights": None}}
    with pytest.raises(UserError, match=r"give init_from\.activation=quickgelu .* or init_from\.activation=gelu"):
        new().load(path, untouched)
    with pytest.raises(UserError, match=r"give towers\.image\.image_heads="):
        new().load(None, {"image": {"weights": path, "activation": "gelu"}})
    with pytest.raises(UserError, match=r"its text tower gives other outputs"):
        new().load(None, {"text": {"weights": path, **choices, "activation": "quickgelu"}})
    whole = new()
    whole.load(path, untouched, choices)
    assert all(torch.equal(tensor, whole.model.state_dict()[name]) for name, tensor in there.model.state_dict().items())
    for kind in ("image", "text"):
        single = new()
        single.load(None, {kind: {"weights": path, **choices}})
        tower = single.model.get_submodule(f"{kind}_tower").state_dict()
        wanted = there.model.get_submodule(f"{kind}_tower").state_dict()
        assert all(torch.equal(tensor, tower[name]) for name, tensor in wanted.items())
