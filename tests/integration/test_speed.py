"""What a run says of its speed, on a clock that goes on only where the test lets it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from data_modules import data_module
from pretraining import BATCH, Rows, fit
from shard_files import jpeg
from torch import Tensor, nn
from views import MEAN, STD, crop_view

from openslip.data.image.eval_transform import EvalTransform
from openslip.data.source import Sample, Source
from openslip.evaluation.evaluation import Evaluation
from openslip.inference.bundle import Bundle
from openslip.objectives.objective import Objective
from openslip.optim import WarmupCosine
from openslip.training.callbacks.evaluate import Evaluate
from openslip.training.callbacks.save import Save
from openslip.training.callbacks.snapshot import Snapshot
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.host_copy import HostCopy
from openslip.training.logging import metrics
from openslip.training.logging.metrics import Metrics
from openslip.training.pretrainer import Pretrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]

STEPS, EPOCH = 8, 2
LOAD, COMPUTE = 0.75, 2.25  # seconds of a step, together 3
LONG = 4096.0  # seconds of all that is no step
INPUTS, OUTPUTS = 3 * 16 * 16, 4


class Clock:
    """Instead of `time.perf_counter`."""

    def __init__(self) -> None:
        self.now = 64.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


class SlowSource(Source):
    """A batch of it takes `LOAD` seconds."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return EPOCH * BATCH

    def __getitem__(self, index: int, /) -> Sample:
        self.clock.passes(LOAD / BATCH)
        return Sample(key=str(index), image=jpeg(index), captions=(), label=None)

    @property
    def fingerprint(self) -> str:
        return "slow"


class SlowSteps(pl.Callback):
    """The first batch is set up for long, as by trials of micro-batch sizes; each step computes `COMPUTE` seconds."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.rates:
            self.clock.passes(LONG)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.clock.passes(COMPUTE)
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class SlowEvaluation(Evaluation):
    every_n_epochs = 1

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.arrays = {"some": np.zeros(1)}

    def run(self, bundle: Bundle) -> dict[str, float]:
        self.clock.passes(LONG)
        return {"figure": 1.0}


class OneProduct(Objective):
    """A linear layer, so that operations are counted by hand."""

    def encode(self, model: nn.Module, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {"image": model(batch["image"].flatten(1))}

    def loss(self, model: nn.Module, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {"loss": features["image"].square().mean()}


@dataclass(frozen=True)
class Fitted:
    """Rows by step, learning rates that the optimizer had by step, and the steps that were evaluated."""

    rows: dict[int, dict[str, float]]
    rates: dict[int, float]
    evaluated: list[int]


@pytest.fixture
def slow_run(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fitted]:
    """A run of which everything but its steps takes long."""
    for module, name in ((np, "savez_compressed"), (HostCopy, "of"), (metrics, "forward_flops")):
        monkeypatch.setattr(module, name, slow(getattr(module, name), clock))

    def run(*, every_n_steps: int, after_step: int = 0) -> Fitted:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "arrays").mkdir()
        pretrainer = Pretrainer(
            model=nn.Linear(INPUTS, OUTPUTS),
            objective=OneProduct(),
            optimizer=lambda groups: torch.optim.AdamW(groups, fused=True),
            schedule=WarmupCosine(lr_start=1e-4, lr=1e-3, lr_end=1e-5, warmup_steps=3, max_steps=STEPS),
            architecture={},
            tokenizer=None,
            transform=EvalTransform(size=16, mean=MEAN, std=STD),
            weight_decay=0.1,
            layer_decay=None,
            clip_norm=None,
            ema_decay=None,
        )
        data = data_module(SlowSource(clock), views={"image": crop_view(16, (0.5, 1.0))})
        pretrainer.step = data.consumed = after_step
        steps, rows = SlowSteps(clock), Rows()
        fit(
            pretrainer,
            STEPS - after_step,
            callbacks=[
                steps,
                Metrics(every_n_steps=every_n_steps, devices={}, peak_tflops=1e-6),
                Snapshot(num_samples=2),
                Save(every_minutes=None, every_n_steps=3, every_n_epochs=1),
                Evaluate({"slow": SlowEvaluation(clock)}),
            ],
            logger=rows,
            plugins=[DurableCheckpointIO()],
            data=data,
            folder=tmp_path,
        )
        assert list((tmp_path / "checkpoints").glob("step-*.ckpt"))
        return Fitted(
            rows={step: row for step, row in rows.rows if step is not None and "train/loss" in row},
            rates=dict(enumerate(steps.rates, start=after_step + 1)),
            evaluated=[step for step, row in rows.rows if step is not None and "eval/slow/figure" in row],
        )

    return run


def slow(function: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    def slowed(*args: Any, **kwargs: Any) -> Any:
        clock.passes(LONG)
        return function(*args, **kwargs)

    return slowed


def test_speeds_are_of_steps_alone(slow_run: Callable[..., Fitted]):
    fitted = slow_run(every_n_steps=2)
    assert fitted.evaluated == [2, 4, 6, 8]
    assert list(fitted.rows) == [1, 2, 4, 6, 8]
    # The first batch was loaded before the clock started.
    first = fitted.rows.pop(1)
    assert first["speed/samples_per_second"] == pytest.approx(BATCH / COMPUTE)
    assert first["speed/data_wait_percent"] == 0
    for row in fitted.rows.values():
        assert row["speed/samples_per_second"] == pytest.approx(BATCH / (LOAD + COMPUTE))
        assert row["speed/samples_per_second_per_device"] == pytest.approx(4.0)
        assert row["speed/data_wait_percent"] == pytest.approx(25.0)


def test_utilisation_is_three_forward_passes_over_the_peak(slow_run: Callable[..., Fitted]):
    fitted = slow_run(every_n_steps=2)
    operations = 3 * 2 * INPUTS * OUTPUTS  # of a sample; 4 of them a second
    assert fitted.rows[4]["speed/mfu_percent"] == pytest.approx(100 * 4 * operations / 1e6)


def test_the_time_left_is_that_of_the_steps_left(slow_run: Callable[..., Fitted]):
    fitted = slow_run(every_n_steps=2)
    seconds = {step: 3600 * row["speed/eta_hours"] for step, row in fitted.rows.items()}
    assert seconds == pytest.approx({1: 2.25 * 7, 2: 5.25 / 2 * 6, 4: 11.25 / 4 * 4, 6: 17.25 / 6 * 2, 8: 0.0})


def test_a_run_that_goes_on_counts_its_own_steps(slow_run: Callable[..., Fitted]):
    fitted = slow_run(every_n_steps=3, after_step=4)
    assert list(fitted.rows) == [6, 8]
    assert fitted.rows[6]["speed/samples_per_second"] == pytest.approx(2 * BATCH / 5.25)
    assert fitted.rows[6]["speed/data_wait_percent"] == pytest.approx(100 * 0.75 / 5.25)
    assert 3600 * fitted.rows[6]["speed/eta_hours"] == pytest.approx(5.25 / 2 * 2)


def test_a_row_holds_the_rate_that_its_step_took_and_the_samples_seen(slow_run: Callable[..., Fitted]):
    fitted = slow_run(every_n_steps=1)
    assert {step: row["train/lr"] for step, row in fitted.rows.items()} == fitted.rates
    assert len(set(fitted.rates.values())) >= STEPS - 1  # the warm-up's last rate comes twice
    assert [row["samples_seen"] for row in fitted.rows.values()] == [12, 24, 36, 48, 60, 72, 84, 96]
