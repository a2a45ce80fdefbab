"""Root values of a training config that cannot be meant are refused before anything is built."""

import inspect
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from shard_files import write_pairs
from trainings import SMALL

from openslip.commands import train
from openslip.commands.train import main, transform_of
from openslip.config.build import build, settled
from openslip.config.check import check_root_values
from openslip.config.compose import compose_config
from openslip.config.length import planned_schedule, planned_steps, warm_up_notes
from openslip.config.replaced import REPLACED
from openslip.data.image.crop import RandomResizedCrop
from openslip.data.order import Order
from openslip.data.source import Collection
from openslip.errors import UserError
from openslip.run.folder import Run, run_name
from openslip.training.callbacks.preemption import Preemption
from openslip.training.lightning import SWITCHED_OFF
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
        run.begin(config, {})
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
        ({"quiet": "yes"}, "quiet=yes: expected true or false"),
        ({"resume": "always"}, "resume=always: expected auto, never or replace"),
        ({"evaluation_samples": 0}, "evaluation_samples=0: expected a whole number of at least 1, or null"),
        ({"data.overfit_batches": True}, r"data\.overfit_batches=True: expected a whole number"),
        ({"compile": "yes"}, "compile=yes: expected auto, true or false"),
        ({"tf32": "yes"}, "tf32=yes: expected true or false"),
        ({"optim.clip_norm": 0}, r"optim\.clip_norm=0: expected a number between 0 and inf, or null"),
        ({"optim.layer_decay": 1.5}, r"optim\.layer_decay=1\.5: expected a number between 0 and 1"),
        ({"optim.ema_decay": True}, r"optim\.ema_decay=True"),
        ({"towers.image.weights": 3}, r"towers\.image\.weights=3: expected a run's folder or a checkpoint file"),
        ({"init_from.checkpoint": 3}, r"init_from\.checkpoint=3: expected a run's folder or a checkpoint file"),
        ({"init_from.activation": "gelu"}, r"init_from\.activation=gelu: expected null where init_from\.checkpoint"),
        ({"towers.text.text_heads": 3}, r"text_heads=3: expected null where towers\.text\.weights names no weights"),
        ({"init_from.resize": "yes"}, r"init_from\.resize=yes: expected true or false"),
        ({"data.decoder.exif": "maybe"}, r"data\.decoder\.exif=maybe: expected apply, ignore or null"),
        ({"data.decoder.transparency": "black"}, r"data\.decoder\.transparency=black: expected white, ignore"),
        ({"init_from.resize": True}, r"init_from\.resize=True: expected false where neither init_from\.checkpoint"),
        ({"towers.image.locked": "yes"}, r"towers\.image\.locked=yes: expected true or false"),
        ({"towers.image.patch_dropout": 1.0}, r"patch_dropout=1\.0: expected a share from 0 to below 1"),
        ({"towers.image.patch_dropout": True}, r"towers\.image\.patch_dropout=True"),
        ({"optim.lr": 0}, r"optim\.lr=0: expected a number above 0"),
        ({"optim.lr": -1e-3}, r"optim\.lr=-0\.001"),
        ({"optim.lr": None}, r"optim\.lr=None"),
        ({"optim.lr": float("nan")}, r"optim\.lr=nan"),
        ({"optim.lr": float("inf")}, r"optim\.lr=inf"),
        ({"optim.weight_decay": -0.1}, r"optim\.weight_decay=-0\.1: expected a number of at least 0"),
        ({"optim.weight_decay": None}, r"optim\.weight_decay=None"),
        ({"optim.warmup_steps": -3}, r"optim\.warmup_steps=-3: expected a whole number of at least 0"),
        ({"optim.warmup_steps": 2.5}, r"optim\.warmup_steps=2\.5"),
        ({"optim.warmup_epochs": -1}, r"optim\.warmup_epochs=-1: expected a number of at least 0"),
        ({"optim.warmup_steps": None, "optim.warmup_epochs": None}, r"optim\.warmup_epochs=None: .*warmup_steps=STEPS"),
        ({"optim.optimizer.betas": [0.9, 1.0]}, r"optim\.optimizer\.betas=\[0\.9, 1\.0\]: .* below 1"),
        ({"optim.optimizer.betas": [-0.1, 0.9]}, r"optim\.optimizer\.betas"),
        ({"optim.optimizer.eps": -1e-8}, r"optim\.optimizer\.eps=-1e-08"),
        ({"optim.optimizer.lr": -1}, r"optim\.optimizer\.lr=-1"),
        ({"optim.schedule.lr": 0}, r"optim\.schedule\.lr=0"),
        ({"optim.schedule.lr_start": -1e-6}, r"optim\.schedule\.lr_start=-1e-06"),
        ({"optim.schedule.lr_start": 1.0}, r"optim\.schedule\.lr_start=1\.0: expected a number from 0 to optim\.lr"),
        (
            {"optim.schedule.lr_end": 1.0},
            r"optim\.schedule\.lr_end=1\.0: expected a number from 0 to optim\.lr=0\.0008",
        ),
        ({"objective.ssl_temperature": 0}, r"objective\.ssl_temperature=0: expected a number above 0"),
        ({"objective.ssl_temperature": -0.1}, r"objective\.ssl_temperature=-0\.1"),
        ({"objective.ssl_scale": -1}, r"objective\.ssl_scale=-1"),
        ({"objective.max_logit_scale": -1}, r"objective\.max_logit_scale=-1"),
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


@pytest.mark.parametrize(
    "time", ["soon", "12:00:00", 15, 0, True, [1], "00:00:00:00", {"seconds": 0}, {"seconds": -3}, {"years": 1}]
)
def test_a_time_that_is_none_is_refused_by_its_key(time: Any):
    with pytest.raises(UserError, match=rf"^trainer\.max_time={re.escape(str(time))}: expected DD:HH:MM:SS"):
        Preemption(max_time=time)
    assert [Preemption(max_time=given).seconds for given in ("00:01:00:05", {"minutes": 2}, None)] == [3605, 120, None]


def test_a_run_names_the_next_commands_with_its_path():
    text = {"tokenizer": {"_target_": "openslip.text.clip_bpe.ClipBpe"}}
    predict, evaluate, report = train.next_commands(Path("my runs/a"), text)[1:]
    assert shlex.split(predict)[:5] == ["openslip", "predict", "IMAGE", "--checkpoint", "my runs/a"]
    assert shlex.split(evaluate)[:3] == ["openslip", "eval", "checkpoint=my runs/a"]
    assert shlex.split(report) == ["openslip", "report", "my runs/a"]
    without_text = train.next_commands(Path("a"), {"tokenizer": None})
    assert "predict" not in " ".join(without_text)
    assert len(without_text) == 3


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

        def build(config: dict[str, Any], key: str = "", /, **extra: Any) -> Any:
            given[key] = extra
            if key == "trainer":
                given["trainer"] = {**config, **extra}
                return None
            return build_really(config, key, **extra)

        def optimise(trainer: None, pretrainer: Any, data: Any, resumed: Any) -> None:
            given["fit"] = {"pretrainer": pretrainer, "datamodule": data, "ckpt_path": resumed}
            raise StoppedError

        def pretrainer(**arguments: Any) -> Any:
            given["pretrainer"] = arguments
            return Pretrainer(**arguments)

        build_really = train.build
        for name, replaced in (("build", build), ("Pretrainer", pretrainer), ("optimise", optimise)):
            monkeypatch.setattr(train, name, replaced)
        for name in ("ignore_foreign_checkpoints", "end_launched_ranks", "finish_wandb", "wait_for_ranks"):
            monkeypatch.setattr(train, name, lambda trainer, *_: None)
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
    assert tuple(optimizer.defaults["betas"]) == (0.8, 0.9)
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


def test_fit_asks_for_tf32(passed_on: Callable[..., dict[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="tf32=true: TF32 is a format of CUDA devices"):
        passed_on("tf32=true")


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
    with pytest.raises(UserError, match=r"warmup_epochs=0\.5: optim\.warmup_steps=50 replaces it; add .*steps=null"):
        compose_config("train", ["optim.warmup_epochs=0.5"])
    compose_config(
        "train", ["debug=fast", "optim.warmup_epochs=0.5"]
    )  # its one step of warm-up is part of the short run
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


@pytest.mark.parametrize(("max_steps", "lines"), [(10, 1), (49, 1), (50, 0), (51, 0)])
def test_a_run_that_ends_inside_its_warm_up_says_so(max_steps: int, lines: int):
    config, _ = compose_config("train", [f"trainer.max_steps={max_steps}"])
    said = [
        f"warm-up is 50 of {max_steps} steps; the peak rate is never reached: add optim.warmup_steps={max_steps // 10}"
    ][:lines]
    assert warm_up_notes(config, 100, max_steps) == said


@pytest.mark.parametrize("page", ["README.md", "docs/DATA.md"])
def test_the_documented_command_trains_on_52_images(page: str):
    lines = (Path(__file__).parents[2] / page).read_text().splitlines()
    (command,) = (line for line in lines if line.startswith("python train.py") and "source.shards=my_shards" in line)
    config, _ = compose_config("train", command.split()[2:])
    order = Order(
        collections=(Collection(np.array([52]), 1.0),),
        global_batch_size=config["global_batch_size"],
        seed=0,
        shuffle_window=1,
    )
    steps = planned_steps(config["trainer"], order.steps_per_epoch)
    assert steps == 10
    assert warm_up_notes(config, order.steps_per_epoch, steps) == []


def test_training_says_that_it_ends_inside_its_warm_up(
    passed_on: Callable[..., dict[str, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
):
    passed_on("trainer.max_steps=2", "optim.warmup_steps=3")
    said = "warm-up is 3 of 2 steps; the peak rate is never reached: add optim.warmup_steps=1\n"
    assert capsys.readouterr().out.count(said) == 1
    passed_on("trainer.max_steps=3", "optim.warmup_steps=3")
    assert "warm-up" not in capsys.readouterr().out


def test_a_schedule_of_ones_own_needs_no_rate_at_its_ends():
    config, _ = compose_config("train", [])
    config["optim"]["schedule"] = {"_target_": "mine.Constant"}
    config["optim"]["optimizer"] = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    config["optim"]["warmup_epochs"] = None  # warmup_steps stands
    check_root_values(config)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return compose_config("train", [])[0]


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("accumulate_grad_batches=2", "micro_batch_size=N"),
        ("gradient_clip_val=1", "optim.clip_norm=NORM"),
        ("gradient_clip_algorithm=value", "optim.clip_norm=NORM"),
        ("overfit_batches=2", "trainer.max_steps"),
        ("overfit_batches=2", "debug=overfit"),
        ("fast_dev_run=true", "debug=fast"),
        ("limit_train_batches=2", "data.overfit_batches=N"),
        ("profiler=simple", "debug=profile"),
        ("fast_dev_run=true", "trainer.max_steps=2"),
        ("fast_dev_run=1", "trainer.max_steps=2"),
        ("limit_train_batches=0", "trainer.max_steps"),
        ("limit_train_batches=0.5", "trainer.max_steps"),
        ("limit_val_batches=2", "evaluation.NAME.every_n_steps"),
        ("val_check_interval=100", "evaluation.NAME.every_n_steps"),
        ("check_val_every_n_epoch=2", "every_n_epochs"),
        ("num_sanity_val_steps=2", "evaluation=none"),
        ("log_every_n_steps=5", "callbacks.metrics.every_n_steps=N"),
        ("enable_checkpointing=true", "callbacks.save.every_minutes, every_n_steps"),
        ("enable_progress_bar=true", "callbacks.metrics.every_n_steps"),
        ("enable_model_summary=true", "openslip plan"),
        ("use_distributed_sampler=true", "global_batch_size"),
        ("min_steps=5", "trainer.max_steps"),
        ("min_epochs=5", "trainer.max_epochs"),
        ("logger=true", "logger=wandb"),
        ("callbacks=[]", "+callbacks.NAME._target_"),
        ("plugins=[]", "trainer.precision"),
        ("default_root_dir=x", "runs_dir="),
        ("sync_batchnorm=true", "global batch"),
        ("barebones=true", "callbacks=none"),
        ("reload_dataloaders_every_n_epochs=1", "seed"),
        ("profiler=simple", "trainer.profiler._target_"),
    ],
)
def test_an_argument_of_lightning_that_we_replace_names_our_key(config: dict[str, Any], setting: str, key: str):
    name, _, value = setting.partition("=")
    config = {**config, "trainer": {**config["trainer"], name: yaml.safe_load(value)}}
    with pytest.raises(UserError) as refused:
        check_root_values(config)
    assert f"trainer.{name}=" in str(refused.value)
    assert key in str(refused.value)


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_an_argument_of_lightning_is_refused_with_our_key_however_it_is_given(plus: str):
    with pytest.raises(UserError, match=r"trainer\.gradient_clip_val.*: optim\.clip_norm=NORM"):
        check_root_values(compose_config("train", [f"{plus}trainer.gradient_clip_val=1"])[0])


def test_lightnings_arguments_are_replaced_off_or_its_own():
    harmless = {"benchmark", "deterministic", "detect_anomaly", "enable_autolog_hparams", "inference_mode"}
    harmless |= {"model_registry", "profiler"}
    ours = {"accelerator", "devices", "max_epochs", "max_steps", "max_time", "num_nodes", "precision", "strategy"}
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    assert known == harmless | ours | REPLACED.keys()
    assert SWITCHED_OFF.keys() <= known


@pytest.mark.parametrize(
    "setting", ["fast_dev_run=false", "gradient_clip_val=null", "detect_anomaly=true", "benchmark=true"]
)
def test_an_argument_of_lightning_that_changes_nothing_is_taken(setting: str):
    check_root_values(compose_config("train", [f"+trainer.{setting}"])[0])


@pytest.mark.parametrize("strategy", ["ddp_spawn", "deepspeed", "dp", "nonsense"])
def test_other_strategies_are_refused_with_what_to_use(strategy: str):
    with pytest.raises(UserError, match=rf"trainer\.strategy={strategy}: expected auto, ddp, .*trainer=ddp"):
        check_root_values(compose_config("train", [f"trainer.strategy={strategy}"])[0])
