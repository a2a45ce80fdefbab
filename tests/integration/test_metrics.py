"""What is logged, when, and what the line says."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
from on_ranks import late_metrics
from pretraining import Rows, fit, pretrainer
from ranks import Ranks

from openslip.progress import duration
from openslip.training.callbacks.save import save
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.logging.late import LateMetrics
from openslip.training.logging.metrics import Metrics
from openslip.training.logging.status_line import StatusLine, status

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


def logged(steps: int, every_n_steps: int, peak_tflops: float | None) -> list[tuple[int | None, dict[str, float]]]:
    rows = Rows()
    metrics = Metrics(every_n_steps=every_n_steps, devices={}, peak_tflops=peak_tflops)
    fit(pretrainer("slip", steps=steps), steps, callbacks=[metrics], logger=rows)
    return [row for row in rows.rows if "train/loss" in row[1]]


def test_the_first_the_last_and_every_third_step_are_logged_once():
    assert [step for step, _ in logged(8, 3, None)] == [1, 3, 6, 8]


def test_a_row_holds_terms_rates_speeds_and_memory():
    _, row = logged(2, 1, 1e-6)[1]
    assert {"train/clip_loss", "train/clip_acc", "train/ssl_loss", "train/ssl_acc", "train/lr"} <= set(row)
    assert row["train/logit_scale"] == pytest.approx(14.29, abs=0.2)
    assert row["speed/samples_per_second"] == row["speed/samples_per_second_per_device"] > 0
    assert row["speed/eta_hours"] == 0
    assert row["speed/peak_memory_gb"] > 0.01
    assert row["speed/mfu_percent"] > 0


def test_the_rate_of_a_row_is_that_with_which_its_step_was_made():
    class Rates(pl.Callback):
        used: ClassVar[list[float]] = []

        def on_before_optimizer_step(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
        ) -> None:
            self.used.append(optimizer.param_groups[0]["lr"])

    rows = Rows()
    metrics = Metrics(every_n_steps=1, devices={}, peak_tflops=None)
    fit(pretrainer("slip", steps=6), 6, callbacks=[metrics, Rates()], logger=rows)
    assert [row["train/lr"] for _, row in rows.rows if "train/lr" in row] == Rates.used
    assert len(set(Rates.used)) > 3


def test_utilisation_is_operations_over_the_peak():
    _, slow = logged(2, 1, 1.0)[1]
    _, fast = logged(2, 1, 4.0)[1]
    ratios = [row["speed/mfu_percent"] / row["speed/samples_per_second"] for row in (slow, fast)]
    assert ratios[0] == pytest.approx(4 * ratios[1])


def test_without_a_known_peak_there_is_no_utilisation():
    assert "speed/mfu_percent" not in logged(1, 1, None)[0][1]


def test_figures_are_the_mean_over_ranks(two_ranks: Ranks):
    for found in two_ranks(late_metrics):
        assert found == {"loss": 1.5, "acc": 25.0}


def test_the_line_says_what_was_measured():
    figures = {
        "train/loss": 3.25,
        "train/lr": 1e-4,
        "speed/samples_per_second": 1000.0,
        "speed/samples_per_second_per_device": 250.0,
        "speed/data_wait_percent": 12.4,
        "speed/mfu_percent": 41.26,
        "speed/peak_memory_gb": 3.216,
        "speed/eta_hours": 1.5,
        "data/bad_samples": 3.0,
    }
    line = (
        "step 5/20  loss 3.25  ETA 1:30:00  1000 samples/s  bad samples 3  data wait 12 %  MFU 41.3 %  lr 0.0001  "
        "3.22 GB  250 samples/s per device"
    )
    assert "  ".join(status(5, 20, figures)) == line
    alone = {key: value for key, value in figures.items() if "percent" not in key and "bad" not in key}
    alone["speed/samples_per_second_per_device"] = 1000.0
    line = "step 5/20  loss 3.25  ETA 1:30:00  1000 samples/s  lr 0.0001  3.22 GB"
    assert "  ".join(status(5, 20, alone)) == line
    skipping = {"train/clip_loss": 2.0, "train/skipped": 3.0, **alone}
    line = "step 5/20  loss 3.25  ETA 1:30:00  1000 samples/s  skipped 3  clip_loss 2  lr 0.0001  3.22 GB"
    assert "  ".join(status(5, 20, skipping)) == line
    assert "skipped" not in "  ".join(status(5, 20, {**skipping, "train/skipped": 0.0}))


def test_a_log_file_gets_the_first_line_the_last_and_twenty_between(capsys: pytest.CaptureFixture[str]):
    line = StatusLine(every_n_steps=10)
    speeds = dict.fromkeys(("samples_per_second", "samples_per_second_per_device", "peak_memory_gb", "eta_hours"), 1.0)
    for step in (1, *range(10, 1006, 10), 1005):
        line.show(step, 1005, {f"speed/{key}": value for key, value in speeds.items()})
    shown = [int(text) for text in re.findall(r"^step (\d+)/1005 ", capsys.readouterr().err, re.MULTILINE)]
    assert shown == [1, *range(50, 1001, 50), 1005]


def test_durations_are_hours_minutes_seconds():
    assert [duration(seconds) for seconds in (5.0, 65.0, 3723.0)] == ["0:05", "1:05", "1:02:03"]


def test_a_checkpoint_comes_after_the_row_of_its_step(tmp_path: Path):
    rows = Rows()
    metrics = Metrics(every_n_steps=2, devices={}, peak_tflops=None)
    made = pretrainer("clip", steps=2)
    trainer = fit(made, 2, callbacks=[metrics], logger=rows)
    metrics.measured = 2, LateMetrics({"train/late": torch.tensor(1.0)}), rows.rows[-1][1]
    trainer.strategy.checkpoint_io = DurableCheckpointIO()
    trainer._default_root_dir = str(tmp_path)  # pyright: ignore[reportAttributeAccessIssue]
    (tmp_path / "checkpoints").mkdir()
    save(trainer, made)
    assert (rows.rows[-1][0], rows.rows[-1][1]["train/late"]) == (2, 1.0)
