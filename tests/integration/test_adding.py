"""What docs/ADDING.md shows works as it stands, in a folder of its own, and touches no existing file."""

import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import openslip
from openslip.commands import predict, train
from openslip.config.build import build, build_parts
from openslip.config.compose import compose_config
from openslip.data.datamodule import DataModule
from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.optim import param_groups
from openslip.training.microbatch import loss_in_micro_batches

ROOT = Path(__file__).parents[2]
COMMON = ["trainer=cpu", "data=coloured_squares", "global_batch_size=8", "evaluation=none"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, written where its text says."""
    folder = tmp_path_factory.mktemp("my_project")
    page = (ROOT / "docs" / "ADDING.md").read_text()
    blocks = re.findall(r"`([\w/]+\.(?:py|yaml))`[^`]*?:\n```(?:python|yaml)\n(.*?)```", page, re.DOTALL)
    for name, content in blocks:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    assert len(blocks) == 17
    return folder


@pytest.fixture
def importable(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(sys.modules, "my_npz", raising=False)  # of another test, which has one of this name
    monkeypatch.syspath_prepend(str(project))
    return project


class Steps:
    """Two steps of a config in one precision: loss terms and the first step's gradients."""

    def __init__(
        self, project: Path, words: list[str], dtype: torch.dtype, micro_batch_size: int | None = None
    ) -> None:
        arguments = ["--config-dir", str(project / "configs"), *COMMON, *words]
        config, _ = compose_config("train", arguments)
        torch.manual_seed(0)
        parts = build_parts(config)
        parts.objective.setup(parts.model)
        self.model, self.objective = parts.model, parts.objective
        weights = torch.float64 if dtype == torch.float64 else torch.float32
        self.model.to(weights)
        self.objective.to(weights)
        self.batch = first_batch(config, parts.views, weights)
        optimizer = torch.optim.AdamW(param_groups([self.model, self.objective], 0.1), lr=1e-3)
        sizes = [8] if micro_batch_size is None else [micro_batch_size] * (8 // micro_batch_size)
        self.terms: list[dict[str, float]] = []
        self.gradients: dict[str, Tensor] = {}
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False):
                terms = loss_in_micro_batches(self.objective, self.model, self.batch, sizes)
            terms["loss"].backward()
            named = [*self.model.named_parameters(), *self.objective.named_parameters()]
            found = {name: p.grad.double().clone() for name, p in named if p.grad is not None}
            self.gradients = self.gradients or found
            optimizer.step()
            self.objective.skipped = torch.zeros((), dtype=torch.bool)
            self.objective.after_step(self.model)
            self.terms.append({name: float(term.detach()) for name, term in terms.items()})


def first_batch(config: dict[str, Any], views: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    data: DataModule = build(config["data"], views=views, global_batch_size=8, seed=0, bad_samples_file=None)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    return {key: column.to(dtype) if column.is_floating_point() else column for key, column in batch.items()}


def distance(steps: Steps, exact: Steps) -> float:
    """Of the gradients as one vector, relative."""
    assert steps.gradients.keys() == exact.gradients.keys()
    apart = sum(float((steps.gradients[name] - g).square().sum()) for name, g in exact.gradients.items())
    return (apart / sum(float(g.square().sum()) for g in exact.gradients.values())) ** 0.5


ADDITIONS = {
    "sigmoid": ["model=clip_tiny", "objective=sigmoid_pairs"],
    "queue": ["model=simclr_tiny", "objective=teacher_queue"],
    "crops": ["model=clip_tiny", "objective=crops_and_captions", "tokenizer.mask_token=true"],
    "image tower": ["model=clip_tiny", "model/tower@model.image_tower=conv_net"],
    "text tower": ["model=clip_tiny", "model/tower@model.text_tower=gru_text", "tokenizer=word_ids"],
}


@pytest.mark.parametrize("name", ADDITIONS)
def test_two_steps_in_float32_and_bf16_are_those_of_float64(importable: Path, name: str):
    exact = Steps(importable, ADDITIONS[name], torch.float64)
    assert exact.terms[1]["loss"] != exact.terms[0]["loss"]
    single = Steps(importable, ADDITIONS[name], torch.float32)
    for ours, theirs in zip(single.terms, exact.terms, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert distance(single, exact) < 1e-4
    if name != "image tower":  # its batch norm sees the whole batch
        parts = Steps(importable, ADDITIONS[name], torch.float64, micro_batch_size=2)
        for ours, theirs in zip(parts.terms, exact.terms, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9)
        assert distance(parts, exact) < 1e-9
    half = Steps(importable, ADDITIONS[name], torch.bfloat16)
    assert half.terms[0]["loss"] == pytest.approx(exact.terms[0]["loss"], rel=0.02)
    # The towers' own rounding, of factors with 8 bits; that the loss adds none is the next test.
    assert distance(half, exact) < 0.2


@pytest.mark.parametrize("name", ADDITIONS)
def test_a_loss_of_16_bit_features_is_that_of_the_same_features_in_float64(importable: Path, name: str):
    half = Steps(importable, ADDITIONS[name], torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = half.objective.encode(half.model, half.batch)
        features = {key: x.bfloat16() if x.is_floating_point() else x for key, x in features.items()}
        loss = half.objective.terms(half.model, features)["loss"]
    assert loss.dtype == torch.float32
    exact = {key: x.double() if x.is_floating_point() else x for key, x in features.items()}
    with torch.no_grad():
        expected = half.objective.double().terms(half.model.double(), exact)["loss"]
    assert expected.dtype == torch.float64
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


RUN = ["trainer.max_steps=2", "optim.warmup_steps=1", "callbacks.metrics.every_n_steps=1"]


@pytest.fixture(scope="module")
def runs(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the train command leaves: every addition in float32, one in bf16 and in micro-batches of three."""
    folder = tmp_path_factory.mktemp("runs")
    common = ["--config-dir", str(project / "configs"), *COMMON[:3], *RUN, "evaluation=feature_spread"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(project))
        patch.chdir(folder)
        for name, words in ADDITIONS.items():
            train.main([*common, *words, "trainer.precision=32-true", f"name={name}"])
        queue = [*common, *ADDITIONS["queue"]]  # the one with a state and a teacher
        train.main([*queue, "trainer.precision=bf16-mixed", "name=queue-bf16"])
        train.main([*queue, "trainer.precision=32-true", "micro_batch_size=3", "name=queue-parts"])
    return folder / "runs"


@pytest.mark.parametrize("name", ADDITIONS)
def test_the_train_command_takes_it(runs: Path, name: str):
    assert len(losses(runs / name)) == 2
    metrics = json.loads((runs / name / "result.json").read_text())["metrics"]
    assert -1 <= metrics["feature_spread"]["mean_cosine"] <= 1


def test_an_addition_with_a_state_trains_alike_in_bf16_and_in_micro_batches(runs: Path):
    whole = losses(runs / "queue")
    assert losses(runs / "queue-bf16") == pytest.approx(whole, rel=0.05)
    assert losses(runs / "queue-parts") == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ADDITIONS if name != "queue"])
def test_every_addition_trains_alike_in_bf16_and_in_micro_batches(
    importable: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(runs.parent)
    common = ["--config-dir", str(importable / "configs"), *COMMON[:3], *RUN, "evaluation=feature_spread"]
    train.main([*common, *ADDITIONS[name], "trainer.precision=bf16-mixed", f"name={name}-bf16"])
    whole = losses(runs / name)
    assert losses(runs / f"{name}-bf16") == pytest.approx(whole, rel=0.05)
    if name != "image tower":  # its batch norm sees the whole batch
        train.main([*common, *ADDITIONS[name], "trainer.precision=32-true", "micro_batch_size=3", f"name={name}-parts"])
        assert losses(runs / f"{name}-parts") == pytest.approx(whole, rel=1e-4)


def test_a_bias_in_the_model_is_saved_loaded_and_used(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = runs / "sigmoid"
    bundle = openslip.load(folder)
    (file,) = (folder / "checkpoints").glob("step-*2.ckpt")
    stored = torch.load(file, weights_only=True)["state_dict"]["model.logit_bias"]
    assert float(stored) != -10.0  # it was trained
    assert torch.equal(bundle.model.logit_bias.detach(), stored)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    predict.main([str(tmp_path / "red.png"), "--checkpoint", str(folder), "--labels", "red,green", "--json"])
    labels = json.loads(capsys.readouterr().out)[0]["labels"]
    assert sum(label["probability"] for label in labels) == pytest.approx(1)


def test_classes_of_your_own_are_built_from_a_file_only_when_allowed(importable: Path, runs: Path):
    for name, classes in {
        "image tower": ("conv_net.ConvNet",),
        "text tower": ("gru_text.GRUText", "word_ids.WordIds"),
    }.items():
        with pytest.raises(UserError, match=re.escape(classes[0])):
            openslip.load(runs / f"{name}")
        bundle = openslip.load(runs / f"{name}", allow=classes)
        assert bundle.encode_text(["a red square"]).shape == (1, bundle.encode_text(["a"]).shape[1])


def test_a_foreign_format_outside_the_package_is_named(importable: Path, runs: Path, tmp_path: Path):
    my_npz = importlib.import_module("my_npz")
    bundle = openslip.load(runs / "queue")
    my_npz.write(bundle, tmp_path / "weights.npz")
    images = torch.rand(2, 3, 32, 32)
    again = openslip.load(tmp_path / "weights.npz", format="my_npz")
    assert torch.equal(encoded(again, images), encoded(bundle, images))


def encoded(bundle: Bundle, images: Tensor) -> Tensor:
    with torch.no_grad():
        return bundle.model.encode_image(images)


PLACES = {
    "objectives": ["sigmoid_pairs", "teacher_queue", "crops_and_captions"],
    "data/sources": ["coloured_squares"],
    "models": ["conv_net", "gru_text"],
    "text": ["word_ids"],
    "evaluation": ["feature_spread"],
    "inference/formats": ["my_npz"],
}
CHECK = """
import openslip
from openslip.inference.formats import my_npz
bundle = openslip.load("runs/inside")
my_npz.write(bundle, "weights.npz")
assert openslip.load("weights.npz").architecture == bundle.architecture
print("found by its name")
"""


@pytest.mark.slow
def test_the_same_files_inside_the_package(project: Path, tmp_path: Path):
    """Everything at once in a copy of the package; its classes need no permission there."""
    for folder in ("src", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    modules = {}
    for folder, names in PLACES.items():
        for name in names:
            shutil.copy(project / f"{name}.py", tmp_path / "src" / "openslip" / folder)
            modules[name] = f"openslip.{folder.replace('/', '.')}.{name}"
    for file in (project / "configs").rglob("*.yaml"):
        target = re.compile(r"_target_: (\w+)\.(?=\w+$)", re.MULTILINE)
        text = target.sub(lambda found: f"_target_: {modules.get(found[1], found[1])}.", file.read_text())
        copied = tmp_path / "configs" / file.relative_to(project / "configs")
        assert not copied.exists()
        copied.write_text(text)
    shutil.copy(ROOT / "train.py", tmp_path)
    words = [*ADDITIONS["sigmoid"], *ADDITIONS["image tower"][1:], *ADDITIONS["text tower"][1:]]
    command = ["train.py", *COMMON[:3], *RUN, "evaluation=feature_spread", *words, "name=inside"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    for arguments in (command, ["-c", CHECK]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "found by its name" in done.stdout
