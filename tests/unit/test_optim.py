"""Learning rate and parameter groups against the published tables."""

import json
from pathlib import Path

import pytest
import torch
from small_models import small_model

from openslip.optim import WarmupCosine, is_decayed, param_groups

RECIPES = json.loads((Path(__file__).parents[1] / "data" / "lr_schedules.json").read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rate_equals_the_published_table(name: str):
    recipe = RECIPES[name]
    per_epoch = recipe["steps_per_epoch"]
    schedule = WarmupCosine(
        lr_start=recipe["lr_start"],
        lr=recipe["lr"],
        lr_end=recipe["lr_end"],
        warmup_steps=recipe["warmup_epochs"] * per_epoch,
        total_steps=recipe["epochs"] * per_epoch,
    )
    for step, lr in recipe["points"].items():
        assert schedule(int(step)) == pytest.approx(lr, rel=1e-9), step


def test_the_peak_occurs_twice_and_the_end_is_never_reached():
    schedule = WarmupCosine(lr_start=1e-6, lr=3e-3, lr_end=1e-5, warmup_steps=10, total_steps=100)
    assert schedule(9) == schedule(10) == pytest.approx(3e-3, rel=1e-12)
    assert schedule(99) > 1e-5
    assert schedule(500) == schedule(99)


def test_a_run_shorter_than_its_warm_up_stays_on_the_line():
    schedule = WarmupCosine(lr_start=0.0, lr=1.0, lr_end=0.0, warmup_steps=11, total_steps=3)
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
