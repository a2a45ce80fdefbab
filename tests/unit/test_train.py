"""Root values of a training config that cannot be meant are refused before anything is built."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_files import write_pairs
from trainings import SMALL

from openslip.commands import train
from openslip.commands.train import main, planned_schedule, planned_steps, transform_of
from openslip.config.build import build, settled
from openslip.config.check import check_root_values
from openslip.config.compose import compose_config
from openslip.data.image.crop import RandomResizedCrop
from openslip.errors import UserError
from openslip.run.folder import Run, run_name
from openslip.training.pretrainer import Pretrainer
from openslip.training.sizing.micro_batch_size import MicroBatchSize


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
        ({"init_from.checkpoint": 3}, r"init_from\.checkpoint=3: expected a run's folder or a checkpoint file"),
        ({"init_from.resize": "yes"}, r"init_from\.resize=yes: expected true or false"),
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


class StoppedError(Exception):
    pass


@pytest.fixture
def passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, dict[str, Any]]]:
    """What `fit` gives to the data module, the pretrainer, Lightning's trainer and to `fit` of the last, by words."""

    def compose_and_fit(*words: str) -> dict[str, dict[str, Any]]:
        write_pairs(tmp_path / "0.tar", 100)
        config, _ = compose_config("train", [*SMALL, f"data.source.shards={tmp_path / '0.tar'}", *words])
        config = settled(config)
        given: dict[str, dict[str, Any]] = {}

        class Trainer:
            def __init__(self, settings: dict[str, Any], extra: dict[str, Any]) -> None:
                given["trainer"] = {**settings, **extra}

            def fit(self, pretrainer: Any, **arguments: Any) -> None:
                given["fit"] = {"pretrainer": pretrainer, **arguments}
                raise StoppedError

        def build(config: dict[str, Any], key: str = "", /, **extra: Any) -> Any:
            given[key] = extra
            return Trainer(config, extra) if key == "trainer" else build_really(config, key, **extra)

        def pretrainer(**arguments: Any) -> Any:
            given["pretrainer"] = arguments
            return Pretrainer(**arguments)

        build_really = train.build
        for name, replaced in (("build", build), ("Pretrainer", pretrainer)):
            monkeypatch.setattr(train, name, replaced)
        for name in ("ignore_foreign_checkpoints", "end_launched_ranks", "finish_wandb"):
            monkeypatch.setattr(train, name, lambda trainer: None)
        (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
        with pytest.raises(StoppedError):
            train.fit(config, Run(tmp_path / "run", "new"))
        monkeypatch.undo()
        return given

    return compose_and_fit


def test_fit_passes_on_what_the_config_says(passed_on: Callable[..., dict[str, dict[str, Any]]]):
    given = passed_on(
        *("optim.layer_decay=0.7", "optim.clip_norm=1.5", "optim.ema_decay=0.9", "optim.weight_decay=0.3", "seed=5"),
        *("mean=[0.1,0.2,0.3]", "std=[0.4,0.5,0.6]", "image_size=48", "global_batch_size=12", "optim.lr=0.002"),
        *("optim.schedule.lr_start=0.0001", "optim.schedule.lr_end=0.0002", "optim.optimizer.betas=[0.8,0.9]"),
        *("optim.warmup_steps=null", "optim.warmup_epochs=2", "trainer.max_steps=null", "trainer.max_epochs=4"),
        *("data.shuffle_window=3", "data.bad_sample_budget=0.5", "tokenizer.context_length=20", "micro_batch_size=4"),
    )
    pretrainer = given["pretrainer"]
    wanted = {"layer_decay": 0.7, "clip_norm": 1.5, "ema_decay": 0.9, "weight_decay": 0.3}
    assert {key: pretrainer[key] for key in wanted} == wanted
    assert pretrainer["transform"].settings() == {"size": 48, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    assert pretrainer["tokenizer"].context_length == 20
    assert pretrainer["architecture"]["text_tower"]["context_length"] == 20
    assert vars(pretrainer["schedule"]) == {
        **{"lr_start": 0.0001, "lr": 0.002, "lr_end": 0.0002},
        **{"warmup_steps": 2 * (100 // 12), "max_steps": 4 * (100 // 12)},
    }
    optimizer = pretrainer["optimizer"]([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    data = given["fit"]["datamodule"]
    assert (data.order.seed, data.order.global_batch_size, data.order.shuffle_window) == (5, 12, 3)
    assert (data.bad_sample_budget, given["data"]["bad_samples_file"].name) == (0.5, "bad_samples.jsonl")
    # What is trained on is what is evaluated on: the same size and colours.
    for view in (view for view in data.views.values() if isinstance(view, RandomResizedCrop)):
        assert (view.size, view.mean, view.std) == (48, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert given["trainer"]["max_steps"] == 4 * (100 // 12)
    assert given["trainer"]["accelerator"] == "cpu"
    (size,) = (callback for callback in given["trainer"]["callbacks"] if isinstance(callback, MicroBatchSize))
    assert size.setting == 4
    assert given["fit"]["ckpt_path"] is None
    assert given["fit"]["pretrainer"].averaged is not None


def test_saving_comes_after_all_that_changes_state(passed_on: Callable[..., dict[str, dict[str, Any]]]):
    names = [type(callback).__name__ for callback in passed_on()["trainer"]["callbacks"]]
    assert names.index("Finite") < min(names.index(name) for name in ("Metrics", "Snapshot", "Save"))
    assert names.index("Save") > max(names.index(name) for name in ("Finite", "Metrics", "Snapshot"))
    assert names.index("Preemption") > names.index("Evaluate") > names.index("Save")


def test_the_run_ends_at_whichever_of_steps_and_epochs_comes_first():
    assert planned_steps({"max_steps": 70, "max_epochs": 2}, 30) == 60
    assert planned_steps({"max_steps": 50, "max_epochs": 2}, 30) == 50
    assert planned_steps({"max_steps": None, "max_epochs": 2}, 30) == 60
    assert planned_steps({"max_steps": 50, "max_epochs": None}, 30) == 50


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
