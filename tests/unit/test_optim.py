"""Learning rate and parameter groups against the published tables."""

import pytest
import torch
from small_models import small_model

from openslip.errors import UserError
from openslip.models.image_encoder import ImageEncoder
from openslip.models.timm_tower import TimmTower
from openslip.optim import WarmupCosine, is_decayed, param_groups
from openslip.verify.files import RECORDINGS, read_json

RECIPES = read_json(RECORDINGS / "lr_schedules.json")


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rate_equals_the_published_table(name: str):
    recipe = RECIPES[name]
    per_epoch = recipe["steps_per_epoch"]
    schedule = WarmupCosine(
        lr_start=recipe["lr_start"],
        lr=recipe["lr"],
        lr_end=recipe["lr_end"],
        warmup_steps=recipe["warmup_epochs"] * per_epoch,
        max_steps=recipe["epochs"] * per_epoch,
    )
    for step, lr in recipe["points"].items():
        assert schedule(int(step)) == pytest.approx(lr, rel=1e-9), step


def test_the_peak_occurs_twice_and_the_end_is_never_reached():
    schedule = WarmupCosine(lr_start=1e-6, lr=3e-3, lr_end=1e-5, warmup_steps=10, max_steps=100)
    assert schedule(9) == schedule(10) == pytest.approx(3e-3, rel=1e-12)
    assert schedule(99) > 1e-5
    assert schedule(500) == schedule(99)


def test_a_run_shorter_than_its_warm_up_stays_on_the_line():
    schedule = WarmupCosine(lr_start=0.0, lr=1.0, lr_end=0.0, warmup_steps=11, max_steps=3)
    assert [schedule(step) for step in range(3)] == pytest.approx([0.0, 0.1, 0.2])


def test_matrices_decay_and_vectors_do_not():
    model, objective = small_model("slip")
    decayed, undecayed = param_groups([model, objective], 0.1)
    assert decayed["weight_decay"] == 0.1
    assert undecayed["weight_decay"] == 0.0
    assert all(parameter.ndim >= 2 for parameter in decayed["params"])
    assert all(parameter.ndim < 2 for parameter in undecayed["params"])
    total = sum(1 for module in (model, objective) for _ in module.parameters())
    assert len(decayed["params"]) + len(undecayed["params"]) == total


def test_a_matrix_named_as_a_norm_does_not_decay():
    assert is_decayed("blocks.0.fc1.weight", 2)
    assert not is_decayed("blocks.0.ln_1.weight", 2)
    assert not is_decayed("position_bias", 2)


def test_frozen_parameters_are_in_no_group():
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    decayed, undecayed = param_groups([layer], 0.1)
    assert len(decayed["params"]) == 1
    assert undecayed["params"] == []


def test_rates_fall_by_depth_towards_the_embeddings():
    model, objective = small_model("slip")  # both towers have two blocks
    scale_of = {
        id(parameter): group["lr_scale"]
        for group in param_groups([model, objective], 0.1, layer_decay=0.65)
        for parameter in group["params"]
    }
    expected = {
        "image_tower.trunk.cls_token": 0.65**3,
        "image_tower.trunk.pos_embed": 0.65**3,
        "image_tower.trunk.patch_embed.proj.weight": 0.65**3,
        "image_tower.trunk.blocks.0.attn.qkv.weight": 0.65**2,
        "image_tower.trunk.blocks.1.mlp.fc1.bias": 0.65,
        "image_tower.trunk.norm.weight": 1.0,
        "text_tower.token_embedding.weight": 0.65**3,
        "text_tower.positional_embedding": 0.65**3,
        "text_tower.blocks.0.fc1.weight": 0.65**2,
        "text_tower.blocks.1.ln_1.weight": 0.65,
        "text_tower.ln_final.bias": 1.0,
        "image_projection": 1.0,
        "logit_scale": 1.0,
    }
    found = {name: scale_of[id(parameter)] for name, parameter in model.named_parameters() if name in expected}
    assert found == pytest.approx(expected)
    assert {scale_of[id(parameter)] for parameter in objective.parameters()} == {1.0}
    assert len(scale_of) == sum(1 for module in (model, objective) for _ in module.parameters())


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "resnet18"])
def test_layer_decay_of_a_tower_whose_layers_are_in_stages_is_refused(name: str):
    with torch.device("meta"):
        tower = TimmTower(name=name, image_size=224, arguments={})
    model = ImageEncoder(image_tower=tower)
    with pytest.raises(UserError, match="the layers of image_tower are not one sequence of transformer blocks"):
        param_groups([model], 0.1, layer_decay=0.65)
    tower.lock()
    with pytest.raises(UserError, match="no tower with blocks is trained"):
        param_groups([model], 0.1, layer_decay=0.65)


def test_layer_decay_without_blocks_is_refused():
    with pytest.raises(UserError, match=r"optim\.layer_decay=0\.65"):
        param_groups([torch.nn.Linear(2, 2)], 0.1, layer_decay=0.65)
