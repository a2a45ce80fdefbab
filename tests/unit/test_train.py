"""Root values of a training config that cannot be meant are refused before anything is built."""

from pathlib import Path
from typing import Any

import pytest
import torch

from openslip.commands import train
from openslip.commands.train import main, planned_schedule, transform_of
from openslip.config.build import build
from openslip.config.check import check_root_values
from openslip.config.compose import compose_config
from openslip.errors import UserError
from openslip.run.folder import Run, run_name


@pytest.mark.parametrize(
    "arguments",
    [
        ["trainer.strategy=fsdp"],
        ["trainer=ddp", "trainer.strategy=fsdp"],
        ["trainer=ddp", "trainer.strategy._target_=pytorch_lightning.strategies.FSDPStrategy"],
    ],
)
def test_fsdp_is_refused_with_what_to_use(arguments: list[str]):
    with pytest.raises(UserError, match=r"not needed at ViT-L/16.*trainer=ddp"):
        main(arguments)


def test_what_auto_precision_chose_first_is_the_runs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trained = []

    def fit(config: dict[str, Any], run: Run) -> None:
        run.begin(config)
        trained.append(config["trainer"]["precision"])

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(train.watchdog, "start", lambda limits: None)
    words = ["trainer=cpu", "name=a", f"runs_dir={tmp_path}"]
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    main(words)
    main(words)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(UserError, match=r"trainer\.precision: bf16-mixed in the run, now 32-true"):
        main(words)
    main([*words, "trainer.precision=bf16-mixed"])
    assert trained == ["bf16-mixed"] * 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"micro_batch_size": "most"}, "micro_batch_size=most: .* auto"),
        ({"micro_batch_size": 0}, "micro_batch_size=0"),
        ({"tf32": "yes"}, "tf32=yes: expected true or false"),
        ({"optim.clip_norm": 0}, r"optim\.clip_norm=0: expected a number between 0 and inf, or null"),
        ({"optim.layer_decay": 1.5}, r"optim\.layer_decay=1\.5: expected a number between 0 and 1"),
        ({"optim.ema_decay": True}, r"optim\.ema_decay=True"),
        ({"towers.image.weights": 3}, r"towers\.image\.weights=3: expected a run's folder or a checkpoint file"),
        ({"towers.image.locked": "yes"}, r"towers\.image\.locked=yes: expected true or false"),
        ({"towers.image.patch_dropout": 1.0}, r"patch_dropout=1\.0: expected a share from 0 to below 1"),
        ({"towers.image.patch_dropout": True}, r"towers\.image\.patch_dropout=True"),
        *(
            ({"callbacks.metrics.peak_tflops": peak}, f"callbacks.metrics.peak_tflops={peak}: expected the device's")
            for peak in ("abc", -1, 0, float("nan"), float("inf"), True)
        ),
    ],
)
def test_an_unfit_value_names_its_key(change: dict[str, Any], said: str):
    config, _ = compose_config("train", [])
    for key, value in change.items():
        *groups, name = key.split(".")
        settings = config
        for group in groups:
            settings = settings[group]
        settings[name] = value
    with pytest.raises(UserError, match=said):
        check_root_values(config)


def test_the_split_of_the_batch_does_not_name_a_run():
    names = set()
    for changes in ([], ["micro_batch_size=3"], ["micro_batch_size=null"], ["callbacks.metrics.peak_tflops=3"]):
        config, choices = compose_config("train", changes)
        check_root_values(config)
        names.add(run_name(config, choices["model"]))
    assert len(names) == 1


def test_the_schedule_takes_its_length_from_epochs_or_steps():
    config, _ = compose_config("train", ["model=slip_vitb16", "data=cc3m"])
    schedule = planned_schedule(config, 709)
    assert (schedule.warmup_steps, schedule.max_steps) == (709, 25 * 709)
    config, _ = compose_config("train", ["trainer.max_steps=70", "optim.warmup_steps=null", "optim.warmup_epochs=0.5"])
    schedule = planned_schedule(config, 160)
    assert (schedule.warmup_steps, schedule.max_steps) == (80, 70)


@pytest.mark.parametrize("settings", [{}, {"exif": "apply", "transparency": "ignore"}])
def test_evaluations_see_images_as_training_does(settings: dict[str, str]):
    words = [f"data.decoder.{key}={value}" for key, value in settings.items()]
    config, _ = compose_config("train", ["model=clip_tiny", *words])
    transform = transform_of(config).settings()
    assert transform == {"size": 32, "mean": config["mean"], "std": config["std"], **settings}
    assert build(config["data"]["decoder"], "data.decoder").to_rgb.settings() == settings
