"""What docs/ADDING.md shows works as it stands, in a folder of its own, and touches no existing file."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openslip.config.build import build, build_parts
from openslip.config.compose import compose_config
from openslip.data.datamodule import DataModule
from openslip.optim import param_groups
from openslip.training.microbatch import loss_in_slices

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
    assert len(blocks) == 19
    return folder


@pytest.fixture
def importable(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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
                terms = loss_in_slices(self.objective, self.model, self.batch, sizes)
            terms["loss"].backward()
            named = [*self.model.named_parameters(), *self.objective.named_parameters()]
            found = {name: p.grad.double().clone() for name, p in named if p.grad is not None}
            self.gradients = self.gradients or found
            optimizer.step()
            self.objective.skipped = torch.zeros((), dtype=torch.bool)
            self.objective.after_step(self.model)
            self.terms.append({name: float(term) for name, term in terms.items()})


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
    "image tower": ["model=clip_tiny", "model/tower@model.image_tower=small_cnn"],
    "text tower": ["model=clip_tiny", "model/tower@model.text_tower=gru_text", "tokenizer=word_ids"],
}


@pytest.mark.parametrize("name", ADDITIONS)
def test_two_steps_in_float32_and_bf16_are_those_of_float64(importable: Path, name: str):
    exact = Steps(importable, ADDITIONS[name], torch.float64)
    assert exact.terms[1]["loss"] < exact.terms[0]["loss"]
    single = Steps(importable, ADDITIONS[name], torch.float32)
    for ours, theirs in zip(single.terms, exact.terms, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert distance(single, exact) < 1e-4
    half = Steps(importable, ADDITIONS[name], torch.bfloat16)
    assert half.terms[0]["loss"] == pytest.approx(exact.terms[0]["loss"], rel=0.02)
    assert distance(half, exact) < 0.1
