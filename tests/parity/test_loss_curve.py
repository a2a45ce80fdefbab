"""Fifty steps of each method give the recorded losses: what changes one of them changes what is computed."""

from pathlib import Path

import numpy as np
import pytest
from pretraining import Rows, fit, pretrainer
from small_models import METHODS
from versions import OLD_TORCH

from openslip.training.logging.metrics import Metrics

CURVES = Path(__file__).parents[1] / "data" / "loss_curves"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.skipif(OLD_TORCH, reason="the recorded runs began with the weights that newer versions draw"),
]


@pytest.mark.parametrize("method", METHODS)
def test_fifty_steps_give_the_recorded_losses(method: str):
    rows = Rows()
    metrics = Metrics(every_n_steps=1, devices={}, peak_tflops=None)
    fit(pretrainer(method, steps=50), 50, callbacks=[metrics], logger=rows)
    losses = [row["train/loss"] for _, row in rows.rows]
    recorded = np.loadtxt(CURVES / f"{method}.txt")
    assert len(losses) == len(recorded) == 50
    assert np.abs(np.array(losses) - recorded).max() <= 1e-5
    assert recorded[-1] < recorded[0]
