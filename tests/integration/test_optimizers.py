"""Every optimizer and learning-rate schedule of the configs; a resume with them ends in the same weights."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from marks import slow
from pretraining import Batches, pretrainer

from openslip.config.build import build
from openslip.config.compose import compose_config
from openslip.config.folder import config_folder
from openslip.config.length import planned_schedule
from openslip.schedules import PiecewiseLinear
from openslip.training.pretrainer import Pretrainer

OPTIMIZERS, SCHEDULES = (
    sorted(path.stem for path in (config_folder() / "optim" / group).glob("*.yaml"))
    for group in ("optimizer", "schedule")
)
STEPS, STOP = 8, 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch ended"),
]


def made(method: str, optimizer: str, schedule: str) -> Pretrainer:
    words = [f"optim/optimizer={optimizer}", f"optim/schedule={schedule}", "optim.lr=1e-3", "optim.warmup_steps=2"]
    config, _ = compose_config("train", [*words, f"trainer.max_steps={STEPS}"])
    module = pretrainer(method, steps=STEPS)
    module.make_optimizer = build(config["optim"]["optimizer"], "optim.optimizer")
    module.schedule = planned_schedule(config, STEPS)
    if method == "slip":
        module.objective.schedules = {"ssl_scale": PiecewiseLinear(at=[0.0, 1.0], values=[0.0, 2.0])}
    return module


def fit(module: Pretrainer, steps: int, folder: Path, checkpoint: Path | None = None) -> pl.Trainer:
    off: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, enable_model_summary=False, default_root_dir=folder, **off
    )
    trainer.fit(module, datamodule=Batches(STEPS, torch.float64), ckpt_path=checkpoint)
    return trainer


CASES = [("siglip ignore", "lion", "rsqrt"), ("slip", "nadamw", "constant")]


@pytest.mark.parametrize(
    ("method", "optimizer", "schedule"),
    [*CASES, slow("unicl", "adafactor", "constant"), slow("clip", "adamw", "rsqrt"), slow("slip", "lion", "cosine")],
)
def test_a_resume_ends_in_the_weights_of_an_undisturbed_run(tmp_path: Path, method: str, optimizer: str, schedule: str):
    whole = made(method, optimizer, schedule)
    before = {name: weight.clone() for name, weight in whole.state_dict().items()}
    fit(whole, STEPS, tmp_path)
    assert not torch.equal(whole.state_dict()["model.text_projection"], before["model.text_projection"])
    fit(made(method, optimizer, schedule), STOP, tmp_path).save_checkpoint(tmp_path / "stopped.ckpt")
    resumed = made(method, optimizer, schedule)
    fit(resumed, STEPS, tmp_path, tmp_path / "stopped.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


def test_the_weight_of_a_term_follows_the_step_also_after_a_resume(tmp_path: Path):
    module = made("slip", "adamw", "cosine")
    fit(module, STOP, tmp_path).save_checkpoint(tmp_path / "stopped.ckpt")
    assert module.scheduled == {"ssl_scale": 2.0 * (STOP - 1) / STEPS}
    resumed = made("slip", "adamw", "cosine")
    fit(resumed, STEPS, tmp_path, tmp_path / "stopped.ckpt")
    assert resumed.scheduled == {"ssl_scale": 2.0 * (STEPS - 1) / STEPS}
    terms = resumed.terms
    torch.testing.assert_close(terms["loss"], terms["clip_loss"] + resumed.scheduled["ssl_scale"] * terms["ssl_loss"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("recipe", ["clip_vitb16", "slip_tiny"])
def test_every_optimizer_takes_the_rate_and_the_decay_of_the_recipe(recipe: str, optimizer: str):
    config, choices = compose_config("train", [f"model={recipe}", f"optim/optimizer={optimizer}"])
    assert choices["optim/optimizer"] == optimizer
    weight = torch.nn.Parameter(torch.ones(20, 20))
    groups = [{"params": [weight], "weight_decay": config["optim"]["weight_decay"], "lr_scale": 1.0}]
    built = build(config["optim"]["optimizer"], "optim.optimizer")(groups)
    (group,) = built.param_groups
    assert (group["lr"], group["weight_decay"]) == (config["optim"]["lr"], config["optim"]["weight_decay"])
    weight.grad = torch.full_like(weight, 1e-3)
    built.step()
    assert (weight < 1).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_reaches_the_rate_of_the_recipe_and_falls(schedule: str):
    config, _ = compose_config("train", ["model=clip_vitb16", f"optim/schedule={schedule}"])
    built = planned_schedule(config, 1000)
    assert (built.warmup_steps, built.max_steps) == (1000, 25000)
    assert built(999) == config["optim"]["lr"]
    assert built(0) == 1e-6
    assert built(24999) < built(15000) <= built(999)
