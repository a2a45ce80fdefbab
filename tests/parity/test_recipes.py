"""Every config against the published recipe, value by value and both ways: `tests/support/published_recipes.py`."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from published_recipes import (
    BEST_TEMPLATES,
    DATASHEETS,
    DECAYED,
    EXPERIMENTS,
    FAMILY,
    HARDWARE,
    HARDWARE_OR_COSMETIC,
    OF_CHECKPOINTS,
    PCIE_TFLOPS,
    PUBLISHED,
    SAMPLES,
    SHAPES,
    SLIP_LEARNING_RATES,
    TITLES,
    TRAINER,
    YFCC15M_STEPS,
    Settings,
    data,
    evaluation,
    optim,
    published_recipe,
    recipe,
    shards,
)

from openslip.config.build import Parts, build, build_parts
from openslip.config.check import lookup
from openslip.config.compose import compose_config
from openslip.config.defaults import composed, plain
from openslip.config.folder import config_folder
from openslip.errors import UserError
from openslip.inference.imagenet_prompts import imagenet_classnames
from openslip.inference.prompts import texts_of
from openslip.optim import param_groups

MODELS = [f"{method}_{size}" for method in ("clip", "simclr", "slip") for size in ("tiny", *SHAPES)]
USERS = {  # what an option leaves for the user to say
    "webdataset": ["data.source.shards=SHARDS"],
    "folder": ["evaluation.folder.source.root=IMAGES"],
    "shards": ["evaluation.shards.source.shards=SHARDS", "evaluation.shards.classnames=NAMES"],
    "retrieval": ["evaluation.retrieval.source.shards=SHARDS"],
}


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENSLIP_DATA", "EVALUATION_DATA", "IMAGENET", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)


def flat(settings: Any, prefix: str = "") -> Settings:
    """Nested settings as dotted keys; a list and empty settings count as one value."""
    if not isinstance(settings, dict) or not settings:
        return {prefix.removesuffix("."): settings}
    return {key: value for name, part in settings.items() for key, value in flat(part, f"{prefix}{name}.").items()}


def results(settings: Any, prefix: str = "") -> Settings:
    """The dotted keys that change a result."""
    return {
        key: value
        for key, value in flat(settings, prefix).items()
        if not any(fnmatchcase(key, pattern) for pattern in HARDWARE_OR_COSMETIC)
    }


def differences(settings: Any, expected: Any, prefix: str = "") -> dict[str, str]:
    """Where a config differs from the table, missing keys of either included."""
    ours, theirs = results(settings, prefix), results(expected, prefix)
    return {
        key: f"config {ours.get(key, 'has no such key')}, table {theirs.get(key, 'has no such key')}"
        for key in ours.keys() | theirs.keys()
        if key not in ours or key not in theirs or not equal(ours[key], theirs[key])
    }


def equal(value: Any, expected: Any) -> bool:
    """Whether two values are the same, ln(1/0.07) to the last digit but one."""
    if isinstance(expected, float) and isinstance(value, int | float):
        return value == pytest.approx(expected, rel=1e-12, abs=0)
    return type(value) is type(expected) and value == expected


def config_of(*words: str) -> Settings:
    return compose_config("train", list(words))[0]


def head(path: str) -> list[str]:
    """The comment above a config, without the line that is Hydra's."""
    lines = (config_folder() / path).read_text().splitlines()
    count = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("# ") for line in lines[:count] if "@package" not in line]


# ---- experiments


def test_each_row_of_the_published_tables_is_an_experiment():
    found = sorted(path.stem for path in (config_folder() / "experiment").glob("*.yaml"))
    assert [name for name in found if not name.startswith("laptop")] == sorted([*EXPERIMENTS, *FAMILY])


@pytest.mark.parametrize("name", FAMILY)
def test_an_experiment_of_another_repository_has_its_settings(name: str):
    config, run = config_of(f"experiment={name}"), FAMILY[name]
    found = {key: lookup(config, key) for key in run.settings}
    assert {key: value for key, value in found.items() if not equal(value, run.settings[key])} == {}
    what, accuracy, *_, command = head(f"experiment/{name}.yaml")
    assert what.startswith(f"{run.title}, {run.settings['trainer.max_epochs']} epochs (")
    assert accuracy.startswith(f"Expected on ImageNet: zero-shot {run.zero_shot} %")
    assert command == f"python train.py experiment={name} trainer=ddp trainer.devices=8"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_the_published_recipe(name: str):
    assert differences(config_of(f"experiment={name}"), published_recipe(*EXPERIMENTS[name])) == {}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_comment_of_an_experiment_has_the_published_metrics(name: str):
    method, size, dataset, epochs = EXPERIMENTS[name]
    metrics = PUBLISHED[method, size, dataset, epochs]
    what, accuracies, *notes, command = head(f"experiment/{name}.yaml")
    title = f"{TITLES[method]} with {TITLES[size]} on {TITLES[dataset]}, {epochs} epochs (SLIP, arXiv:2112.12750,"
    assert what.startswith(title)
    expected = {"zero-shot": metrics.zero_shot, "linear probe": metrics.linear, "fine-tuned": metrics.fine_tuned}
    found = re.findall(r"(zero-shot|linear probe|fine-tuned) (\S+) %", accuracies)
    assert found == [(metric, f"{value:.1f}") for metric, value in expected.items() if value is not None]
    assert accuracies.startswith("Expected on ImageNet: ")
    assert ("no zero-shot (no text)" in accuracies) == (metrics.zero_shot is None)
    known = []
    if dataset == "cc3m":
        known = ["The published metrics are of the best epoch, not the last."]
    if (method, size, dataset) == ("clip", "vitb16", "yfcc15m"):
        known = ["The paper's run took 22.3 hours on 64 V100s."]
    assert notes == known
    assert command == f"python train.py experiment={name} trainer=ddp trainer.devices=8"


def test_the_readme_has_the_published_metrics():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    rows = re.findall(r"^\| (\w+), (\d+) epochs \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", readme, re.MULTILINE)
    sizes = ("vits16", "vitb16", "vitl16")
    assert [row[:2] for row in rows] == [("CLIP", "25"), ("SLIP", "25"), ("SLIP", "50"), ("SLIP", "100")]
    for method, epochs, *accuracies in rows:
        published = [PUBLISHED[method.lower(), size, "yfcc15m", int(epochs)].zero_shot for size in sizes]
        assert [float(accuracy) for accuracy in accuracies] == published


# ---- what the recipes build


@cache
def parts_of(model: str) -> Parts:
    with torch.device("meta"):
        parts = build_parts(config_of(f"model={model}"))
        parts.objective.setup(parts.model)
    return parts


def count(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize("size", SHAPES)
def test_a_model_has_the_published_shape(size: str):
    shape, parts = SHAPES[size], parts_of(f"slip_{size}")
    trunk: Any = parts.model.get_submodule("image_tower.trunk")
    assert (trunk.embed_dim, len(trunk.blocks), trunk.patch_embed.patch_size) == (shape.width, shape.depth, (16, 16))
    assert {block.attn.num_heads for block in trunk.blocks} == {shape.heads}
    assert (trunk.patch_embed.grid_size, trunk.norm.eps) == ((14, 14), 1e-6)
    modules = list(trunk.modules())
    assert not {type(module).__name__ for module in modules} & {"DropPath", "LayerScale", "PatchDropout"}
    assert {module.p for module in modules if isinstance(module, torch.nn.Dropout)} == {0.0}
    # SLIP is CLIP's model with SimCLR's head.
    visual, model, head = (
        count(trunk.parameters()),
        count(parts.model.parameters()),
        count(parts.objective.parameters()),
    )
    assert visual == shape.visual_parameters
    assert {"clip": model, "simclr": visual + head, "slip": model + head} == shape.parameters


# openai/CLIP: the parameters of its published ViT-B/32 and ResNet-50, and of their image towers.
@pytest.mark.parametrize(
    ("size", "visual", "whole"), [("vitb32", 87_456_000, 151_277_313), ("rn50", 38_316_896, 102_007_137)]
)
def test_clips_own_sizes_have_the_published_number_of_parameters(size: str, visual: int, whole: int):
    model = parts_of(f"clip_{size}").model
    assert count(model.get_submodule("image_tower").parameters()) == visual
    assert count(model.parameters()) == whole


def test_matrices_decay_and_nothing_else_of_the_published_models():
    parts = parts_of("slip_vitb16")
    for method, modules in {"clip": [parts.model], "slip": [parts.model, parts.objective]}.items():
        decayed, undecayed = param_groups(modules, 0.1)
        assert (len(decayed["params"]) + len(undecayed["params"]), count(decayed["params"])) == DECAYED[method]


def test_the_class_token_is_drawn_as_by_the_timm_of_the_published_code():
    tower: Any = build(config_of("model=slip_tiny")["model"]["image_tower"])
    assert 0.015 < tower.trunk.cls_token.std().item() < 0.025  # 0.02; timm since 0.6: 1e-6


def test_the_learning_rate_is_the_published_table():
    config = config_of("experiment=yfcc15m_slip_vitb16_25ep")
    steps = config["data"]["source"]["expected_samples"] // config["global_batch_size"]
    assert steps == YFCC15M_STEPS
    schedule = build(
        config["optim"]["schedule"],
        warmup_steps=config["optim"]["warmup_epochs"] * steps,
        max_steps=config["trainer"]["max_epochs"] * steps,
    )
    for step, lr in SLIP_LEARNING_RATES.items():
        assert schedule(step) == pytest.approx(lr, rel=1e-8), step


def test_imagenet_prompts_are_the_published_ones():
    templates = config_of("experiment=yfcc15m_clip_vits16_25ep")["evaluation"]["imagenet"]["templates"]
    assert sorted(texts_of(templates, "templates")) == sorted(BEST_TEMPLATES)
    names = imagenet_classnames()
    assert len(names) == 1000
    assert {name for name in names if names.count(name) > 1} == {"missile", "sunglasses"}


# ---- models without an experiment, and every other option


@pytest.mark.parametrize("model", MODELS)
def test_a_model_without_an_experiment_is_its_recipe_in_the_correct_mode(model: str):
    method, size = model.split("_")
    assert differences(config_of(f"model={model}"), recipe(method, size)) == {}


def test_without_words_the_run_is_slip_tiny_in_a_sweep_too():
    swept, _ = composed("sweep", [], [])
    for config in (config_of(), plain(swept, resolve=True)):
        assert differences(config, recipe("slip", "tiny")) == {}


def test_the_faithful_mode_switches_the_gather_and_the_tokenizer():
    assert differences(config_of("mode=faithful"), recipe("slip", "tiny", mode="faithful")) == {}


def test_the_objective_of_a_model_says_where_its_logits_start():
    words = ["+objective.model.logit_scale_init=2.3", "+objective.model.logit_bias_init=-10"]
    for method in ("clip", "slip"):
        model = config_of(f"model={method}_tiny", *words)["model"]
        assert (model["logit_scale_init"], model["logit_bias_init"]) == (2.3, -10)


def test_the_optimizer_that_all_share_leaves_rate_and_decay_to_the_recipe():
    config = config_of("optim=adamw", "optim.lr=3e-3", "optim.weight_decay=0.1")
    assert differences(config["optim"], optim("slip"), "optim.") == {}


@pytest.mark.parametrize("name", ["coco", "redcaps", "mixture", "webdataset"])
def test_a_dataset_without_an_experiment_is_the_published_one(name: str):
    assert differences(config_of(f"data={name}", *USERS.get(name, []))["data"], data(name), "data.") == {}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_comment_of_a_dataset_has_its_number_of_samples(name: str):
    number = f"{SAMPLES[name]:,}".replace(",", " ")
    for path in (f"data/{name}.yaml", f"data/source/{name}.yaml"):
        assert number in " ".join(head(path)), path


@pytest.mark.parametrize("name", ["none", *OF_CHECKPOINTS])
def test_an_evaluation_of_a_checkpoint_is_the_published_one(name: str):
    config, _ = compose_config("eval", ["checkpoint=FILE", f"evaluation={name}", *USERS.get(name, [])])
    assert differences(config.pop("evaluation"), evaluation(name), "evaluation.") == {}
    as_in_the_run = {"transparency": None, "exif": None}
    for_all = {"classnames": None, "templates": None}
    as_the_file_says = {"activation": None, "image_heads": None, "text_heads": None}
    plain = {"checkpoint": "FILE", "device": "auto", "format": None, "output": None}
    plain |= {"feature_cache": "auto", "again": False}
    assert differences(config, plain | as_in_the_run | for_all | as_the_file_says) == {}


@pytest.mark.parametrize("name", ["folder", "shards", "retrieval"])
def test_an_evaluation_of_ones_own_data_in_training(name: str):
    config = config_of(f"evaluation={name}", *USERS[name])
    assert differences(config["evaluation"], evaluation(name), "evaluation.") == {}


def test_the_evaluation_of_eval_is_the_builtin_one():
    config, _ = compose_config("eval", ["checkpoint=FILE"])
    assert differences(config["evaluation"], evaluation("builtin"), "evaluation.") == {}


@pytest.mark.parametrize(
    ("root", "words", "key"),
    [
        ("train", ["optim=adamw", "optim.lr=1e-3"], "optim.weight_decay"),
        ("train", ["optim=adamw", "optim.weight_decay=0.1"], "optim.lr"),
        ("train", ["data=webdataset"], "data.source.shards"),
        ("train", ["evaluation=folder"], "evaluation.folder.source.root"),
        ("train", ["evaluation=shards", USERS["shards"][0]], "evaluation.shards.classnames"),
        ("train", ["evaluation=shards", USERS["shards"][1]], "evaluation.shards.source.shards"),
        ("train", ["evaluation=retrieval"], "evaluation.retrieval.source.shards"),
        ("eval", [], "checkpoint"),
    ],
)
def test_what_only_the_user_knows_has_no_default(root: str, words: list[str], key: str):
    with pytest.raises(UserError, match=re.escape(key)):
        compose_config(root, words)


def test_data_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENSLIP_DATA", "/elsewhere")
    monkeypatch.setenv("IMAGENET", "/images")
    for name in SAMPLES:
        config = config_of(f"data={name}", "evaluation=imagenet")
        assert differences(config["data"]["source"], shards(name, "/elsewhere"), "data.source.") == {}
        assert config["evaluation"]["imagenet"]["source"]["places"]["folders"]["root"] == "/images/val"


# ---- hardware


@pytest.mark.parametrize("name", HARDWARE)
def test_the_trainer_on_each_hardware(name: str):
    expected = {**TRAINER, **HARDWARE[name], "max_steps": 1100, "max_epochs": None}
    assert config_of(f"trainer={name}")["trainer"] == expected


def test_slurm_says_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    monkeypatch.setenv("SLURM_NNODES", "2")
    trainer = config_of("trainer=slurm")["trainer"]
    assert (trainer["devices"], trainer["num_nodes"]) == (8, 2)


def test_gpus_have_the_peaks_and_the_memory_of_their_data_sheets():
    config = config_of()
    assert config["devices"] == config["callbacks"]["metrics"]["devices"] == DATASHEETS
    pcie = ", ".join(f"{name} {tflops}" for name, tflops in PCIE_TFLOPS.items())
    assert f"({pcie}): callbacks.metrics.peak_tflops={PCIE_TFLOPS['H100']}." in " ".join(
        head("devices/datasheets.yaml")
    )
    assert config["callbacks"]["metrics"]["peak_tflops"] is None  # the table's


def test_every_key_that_is_left_out_exists():
    keys = flat(config_of("experiment=yfcc15m_slip_vitb16_25ep")).keys()
    unused = [pattern for pattern in HARDWARE_OR_COSMETIC if not any(fnmatchcase(key, pattern) for key in keys)]
    assert unused == []
