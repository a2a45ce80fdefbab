"""Evaluations during training: their best results, the checkpoint that is kept, and the EMA weights."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from on_ranks import evaluation_of_ranks
from pretraining import Rows, fit, pretrainer
from ranks import Ranks
from trainings import RUN, Training, newest

from openslip.evaluation.evaluation import Evaluation
from openslip.inference.bundle import Bundle
from openslip.inference.files import read
from openslip.run.checkpoints import BEST, saved
from openslip.training.callbacks.evaluate import Evaluate
from openslip.training.callbacks.save import Save
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.pretrainer import Pretrainer

# The evaluation of step 8 has the best height. In the end, its checkpoint is not among the two newest ones.
PEAK = [
    *RUN,
    *("trainer.max_steps=20", "callbacks.save.every_n_steps=5", "callbacks.save.every_n_epochs=null"),
    *("+evaluation.peak._target_=disturbances.Peak", "+evaluation.peak.every_n_steps=4"),
    *(
        "+evaluation.end._target_=disturbances.Scale",
        "+evaluation.end.name=end",
        "+callbacks.count._target_=disturbances.Overwrite",
    ),
]


def test_a_run_that_is_killed_keeps_its_best_result_and_that_checkpoint(place: Path):
    folder = place / "runs" / "peak"
    link = folder / "checkpoints" / BEST
    for disturbance, code in (
        ("kill_peak 2 0", -signal.SIGKILL),  # within the evaluation of step 8
        ("signal 10 0", 143),  # after it
        ("none 0 0", 0),
    ):
        link.unlink(missing_ok=True)  # as if the run had been killed before the link was made
        training = Training(place, *PEAK, "name=peak", log="peak", DISTURB=disturbance)
        assert training.wait() == code, training.said()
    result = json.loads((folder / "result.json").read_text())
    assert result["best"] == {"peak": {"metric": "height", "value": 1.0, "step": 8}}
    assert result["lines"][0] == "Peak: height 0.8125; best height 1 at step 8"
    assert os.readlink(link) == "step-000008.ckpt"
    assert read(link)["state_dict"]["model.logit_scale"].item() == 1 + 8 / 64
    assert [checkpoint.step for checkpoint in saved(folder / "checkpoints")] == [20, 15, 8]
    assert newest(folder)["openslip"]["step"] == 20


def test_the_best_result_of_the_evaluations_at_the_end_is_kept_when_the_run_is_extended(place: Path):
    folder = place / "runs" / "longer"
    # The best result is that of step 8, where no interval ends and the checkpoint is saved before the evaluations.
    for steps in (8, 12):
        words = [*PEAK, "evaluation.peak.every_n_steps=3", f"trainer.max_steps={steps}", "name=longer"]
        training = Training(place, *words, log=f"longer{steps}", DISTURB="none 0 0")
        assert training.wait() == 0, training.said()
        result = json.loads((folder / "result.json").read_text())
        assert result["best"] == {"peak": {"metric": "height", "value": 1.0, "step": 8}}
        assert os.readlink(folder / "checkpoints" / BEST) == "step-000008.ckpt"


def test_an_extended_run_repeats_no_evaluation_of_the_step_that_was_its_last(tmp_path: Path):
    """The checkpoint of that step was saved before they ran."""

    class Done(Evaluation):
        every_n_steps = 4

        def run(self, bundle: Bundle) -> dict[str, float]:
            raise AssertionError("repeated")

    result = {"step": 8, "metrics": {"done": {"height": 0.5}}, "best": {}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "checkpoints").mkdir()
    evaluate, trainer = Evaluate({"done": Done()}), Mock(spec=pl.Trainer, default_root_dir=str(tmp_path))
    module = Mock(spec=Pretrainer, step=8, max_steps=12, bundles={"eval": None}, data=Mock(steps_per_epoch=5))
    evaluate.on_fit_start(trainer, module)
    evaluate.on_train_start(trainer, module)
    assert evaluate.steps == {"done": 8}


def test_all_ranks_have_the_results_of_the_first(two_ranks: Ranks):
    """Last bits may differ between ranks, which must agree on the best step."""
    for results, best in two_ranks(evaluation_of_ranks):
        assert results == {"of_rank": {"rank": 0.0}}
        assert best["of_rank"].value == 0.0


class Length(Evaluation):
    """Measures the weights; the bundle of its last run is kept."""

    headline_metric = "length"
    every_n_steps = 2

    def run(self, bundle: Bundle) -> dict[str, float]:
        total = sum(float(weight.detach().double().square().sum()) for weight in bundle.model.parameters())
        self.model = bundle.model
        self.arrays = {"total": np.array([total])}
        return {"length": total}


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*")
def test_evaluations_measure_the_trained_weights_and_the_ema_weights(tmp_path: Path):
    made, evaluation, rows = pretrainer("slip", steps=4, ema_decay=0.8), Length(), Rows()
    evaluate = Evaluate({"mine": evaluation})
    fit(made, 4, callbacks=[evaluate], logger=rows, folder=tmp_path)
    logged = {step: row for step, row in rows.rows if "eval/mine/length" in row}
    assert list(logged) == [2, 4]
    assert logged[4]["eval/mine/length"] == length(replace(made.bundle, model=made.model))
    assert logged[4]["eval_ema/mine/length"] == length(made.bundle)
    assert logged[4]["eval/mine/length"] != logged[4]["eval_ema/mine/length"]
    assert evaluation.model is made.averaged, "arrays are those of the weights that openslip.load loads"
    with np.load(tmp_path / "arrays" / "mine.npz") as arrays:
        assert arrays["total"] == logged[4]["eval_ema/mine/length"]
    outcome = evaluate.outcome()
    assert outcome["metrics"]["mine"]["length"] == logged[4]["eval/mine/length"]
    assert outcome["ema_metrics"]["mine"]["length"] == logged[4]["eval_ema/mine/length"]
    values = {step: row["eval_ema/mine/length"] for step, row in logged.items()}
    assert outcome["best"]["mine"] == {
        "metric": "length",
        "value": max(values.values()),
        "step": max(values, key=values.__getitem__),
    }
    ema, trained = evaluate.headlines()
    assert "(EMA weights)" in ema
    assert trained.endswith("(trained weights)")
    assert not (tmp_path / "checkpoints").exists(), "without the callback Save, nothing is saved"


def length(bundle: Bundle) -> float:
    return Length().run(bundle)["length"]


class Falling(Length):
    """The first result is the best."""

    def run(self, bundle: Bundle) -> dict[str, float]:
        self.calls = getattr(self, "calls", 0) + 1
        return {"length": -float(self.calls)}


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*")
def test_a_best_result_between_two_saves_is_saved_and_changes_no_weights(tmp_path: Path):
    alone = pretrainer("slip", steps=6)
    fit(alone, 6)
    made = pretrainer("slip", steps=6)
    (tmp_path / "checkpoints").mkdir()
    save = Save(every_minutes=None, every_n_steps=3, every_n_epochs=None)
    at_end = Length()
    at_end.every_n_steps = 0
    evaluate = Evaluate({"at_end": at_end, "mine": Falling()})
    fit(made, 6, callbacks=[save, evaluate], plugins=[DurableCheckpointIO()], folder=tmp_path)
    assert os.readlink(tmp_path / "checkpoints" / BEST) == "step-000002.ckpt", "of the one that has an interval"
    assert [checkpoint.step for checkpoint in saved(tmp_path / "checkpoints")] == [6, 3, 2]
    stored = read(tmp_path / "checkpoints" / BEST)["callbacks"]["Evaluate"]
    assert stored["best"]["mine"] == {"metric": "length", "value": -1.0, "step": 2}
    again = Evaluate(evaluate.evaluations)
    again.load_state_dict(stored)
    assert again.best == {"mine": (evaluate.best["mine"])}
    for name, weight in alone.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight), name
