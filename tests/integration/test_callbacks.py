"""What callbacks do at the end of a step, in which order, and on which schedule."""

import csv
import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pretraining import BATCH, Batches, fit, pretrainer
from torch import Tensor
from trainings import RUN, STEPS, Training, newest, steps_saved
from views import caption_view

from openslip.config.build import build_evaluations
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.source import Sample, Source
from openslip.errors import DataError, UserError
from openslip.inference.files import read
from openslip.objectives.clip import CLIP
from openslip.report import write_report
from openslip.run.checkpoints import saved
from openslip.text.tokenizer import Tokenizer
from openslip.training.callbacks.evaluate import Evaluate
from openslip.training.callbacks.snapshot import Snapshot
from openslip.training.pretrainer import Pretrainer

# Nothing after `save` in the dict of callbacks may be missed by it.
OVERWRITTEN = [*RUN, "trainer.max_steps=9", "+callbacks.after_save._target_=disturbances.Overwrite"]
SCHEDULES = {"a": "every_n_steps=4", "b": "every_n_epochs=2", "c": "every_n_steps=0"}
DUE = {"a": [*range(4, STEPS, 4), STEPS], "b": [12, 24, STEPS], "c": [STEPS]}
EVALUATED = [
    *RUN,
    *(f"+evaluation.{name}._target_=disturbances.Scale" for name in SCHEDULES),
    *(f"+evaluation.{name}.name={name}" for name in SCHEDULES),
    *(f"+evaluation.{name}.{schedule}" for name, schedule in SCHEDULES.items()),
]


def test_a_checkpoint_holds_what_a_callback_changed_that_stands_after_save(place: Path):
    training = Training(place, *OVERWRITTEN, "name=overwritten", log="overwritten")
    assert training.wait() == 0, training.said()
    checkpoints = saved(place / "runs" / "overwritten" / "checkpoints")
    assert [checkpoint.step for checkpoint in checkpoints] == [9, 8]
    for checkpoint in checkpoints:
        content = read(checkpoint.path)
        assert content["callbacks"]["Overwrite"]["count"] == checkpoint.step
        assert content["state_dict"]["model.logit_scale"].item() == 1 + checkpoint.step / 64


def scales(run_folder: Path, name: str) -> dict[int, str]:
    """What an evaluation measured, by step."""
    with (run_folder / "metrics.csv").open() as file:
        column = f"eval/{name}/scale"
        rows = [(int(row["step"]), row[column]) for row in csv.DictReader(file) if row.get(column)]
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_each_evaluation_runs_on_its_own_schedule_whatever_interrupts_the_run(place: Path):
    undisturbed = Training(place, *EVALUATED, "name=schedules", log="schedules")
    assert undisturbed.wait() == 0, undisturbed.said()
    expected = {name: scales(place / "runs" / "schedules", name) for name in DUE}
    assert {name: list(steps) for name, steps in expected.items()} == DUE
    folder = place / "runs" / "schedules_cut"
    for disturbance, code in (
        ("kill_b 1 0", -signal.SIGKILL),  # in the middle of those due at step 12
        ("kill_a 1 0", -signal.SIGKILL),  # before any of them
        ("signal 13 0", 143),  # after all of them
        ("kill_a 4 0", -signal.SIGKILL),  # at step 28
        ("kill_c 1 0", -signal.SIGKILL),  # the last of those at the end
        ("kill_a 1 0", -signal.SIGKILL),  # no step is left
    ):
        training = Training(place, *EVALUATED, "name=schedules_cut", log="schedules_cut", DISTURB=disturbance)
        assert training.wait() == code, training.said()
    training = Training(place, *EVALUATED, "name=schedules_cut", log="schedules_cut")
    assert training.wait() == 0, training.said()
    assert {name: scales(folder, name) for name in DUE} == expected
    assert newest(folder)["callbacks"]["Evaluate"]["steps"]["b"] == 24
    results = json.loads((folder / "result.json").read_text())["metrics"]
    assert results == {name: {"scale": float(steps[STEPS])} for name, steps in expected.items()}


def test_an_evaluation_that_ended_before_the_save_is_not_repeated(place: Path):
    run = [*EVALUATED, "callbacks.save.every_n_steps=7", "name=ended"]
    assert Training(place, *run, log="ended", DISTURB="signal 8 0").wait() == 143
    assert newest(place / "runs" / "ended")["callbacks"]["Evaluate"]["steps"] == {"a": 8}
    assert Training(place, *run, log="ended", DISTURB="kill_a 1 0").wait() == -signal.SIGKILL
    assert steps_saved(place / "runs" / "ended")[0] == 12


def test_the_state_of_a_run_that_began_with_one_schedule_for_all_is_read():
    evaluate = Evaluate(build_evaluations({name: {"_target_": "disturbances.Scale", "name": name} for name in "ab"}))
    evaluate.load_state_dict({"step": 12})
    assert evaluate.steps == {"a": 12, "b": 12}
    again = Evaluate(evaluate.evaluations)
    again.load_state_dict(evaluate.state_dict())
    assert again.steps == evaluate.steps


@pytest.mark.parametrize("interval", [-1, 0.5, True])
def test_a_schedule_that_is_no_whole_number_is_refused_by_its_key(interval: Any):
    options = {"_target_": "disturbances.Scale", "name": "a", "every_n_steps": interval}
    with pytest.raises(UserError, match=f"evaluation.a.every_n_steps={interval}: expected a whole number"):
        build_evaluations({"a": options})


class Renamed(CLIP):
    """CLIP of the second crop and the second caption."""

    def encode(self, model: Any, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        pair = {"image": batch["crop_b"], "text": batch["caption2"], "text_length": batch["caption2_length"]}
        return super().encode(model, pair)


class Numbers(Tokenizer):
    """Decodes ids as numbers."""

    def encode(self, texts: Any, /) -> Any:
        raise NotImplementedError

    def decode(self, ids: Any, /) -> str:
        return " ".join(map(str, ids))

    def settings(self) -> dict[str, Any]:
        return {}


class WithoutCaptions(Source):
    """Samples that have no captions any more."""

    def __len__(self) -> int:
        return BATCH

    def __getitem__(self, index: int, /) -> Sample:
        return Sample("", b"", (), None)

    @property
    def fingerprint(self) -> str:
        return ""


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*")
@pytest.mark.parametrize(
    ("method", "images", "captions"),
    [
        ("clip", ["image"], ["text"]),
        ("simclr", ["aug1", "aug2"], []),
        ("slip", ["image", "aug1", "aug2"], ["text"]),
        ("renamed", ["crop_a", "crop_b"], ["caption1", "caption2"]),
    ],
)
def test_the_report_shows_the_views_of_any_objective(
    tmp_path: Path, method: str, images: list[str], captions: list[str]
):
    made = pretrainer("clip" if method == "renamed" else method, steps=1)
    made.tokenizer = Numbers() if captions else None
    batches = Batches(1, torch.float64)
    columns = {key: column for key, column in batches.batch.items() if key in ("index", *images)}
    if method == "renamed":
        made.objective = Renamed(gather_with_grad=True, max_logit_scale=4.6052, same_caption="negative")
        columns |= dict(zip(images, (batches.batch["aug1"], batches.batch["aug2"]), strict=True))
    for number, name in enumerate(captions):
        columns[name] = batches.batch["text"].roll(number, 0)
        columns[f"{name}_length"] = batches.batch["text_length"].roll(number, 0)
    batches.batch = {**columns, "index": torch.arange(BATCH)}
    batches.source = WithoutCaptions()
    (tmp_path / "arrays").mkdir()
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    fit(made, 1, callbacks=[Snapshot(num_samples=4)], data=batches, folder=tmp_path)
    with np.load(tmp_path / "arrays" / "views.npz") as views:
        assert views.files == [*images, *captions]
        for name in images:
            assert (views[name].shape[:2], views[name].dtype) == ((4, 3), np.uint8)
        texts = {name: views[name].tolist() for name in captions}
    for name, shown in texts.items():
        rows = zip(columns[name].tolist(), columns[f"{name}_length"].tolist(), strict=True)
        assert shown == [" ".join(map(str, ids[:length])) for ids, length in rows][:4]
    page = write_report(tmp_path).read_text()
    assert all(f"<span>{name}</span>" in page for name in images)
    assert page.count("<q>") == 4 * len(captions)
    assert len(columns[images[0]]) == BATCH
    if captions:
        with np.load(tmp_path / "arrays" / "similarity.npz") as similarity:
            assert similarity["captions"].tolist() == texts[captions[0]]
            assert similarity["matrix"].shape == (4, 4)
        assert "images (rows) with their" in page
    else:
        assert not (tmp_path / "arrays" / "similarity.npz").exists()


def test_the_first_batch_is_kept_also_when_the_run_is_resumed(tmp_path: Path):
    (tmp_path / "arrays").mkdir()
    trainer: Any = Mock(spec=pl.Trainer, default_root_dir=str(tmp_path), loggers=[])
    module: Any = Mock(spec=Pretrainer, tokenizer=None, step=0, data=SimpleNamespace(source=WithoutCaptions()))
    module.transform = EvalTransform(size=4, mean=[0.5] * 3, std=[0.2] * 3)
    snapshot, resumed = Snapshot(num_samples=2), Snapshot(num_samples=2)
    for number in range(2):
        snapshot.on_train_batch_start(trainer, module, {"image": torch.full((3, 3, 4, 4), 1.0 - number)}, number)
    resumed.load_state_dict(snapshot.state_dict())
    resumed.on_train_batch_start(trainer, module, {"image": torch.zeros(3, 3, 4, 4)}, 0)
    with np.load(tmp_path / "arrays" / "views.npz") as views:
        assert (views["image"] == module.transform.undo(torch.ones(2, 3, 4, 4))).all()
    assert (resumed.kept["image"] == 1).all()


class Written(WithoutCaptions):
    """Samples of two captions each, of which one sample cannot be read any more."""

    def __getitem__(self, index: int, /) -> Sample:
        if index == 2:
            raise DataError("gone")
        return Sample("", b"", (f"A Red-Ring, No. {index}!", "Another ONE"), None)


def test_captions_are_shown_as_written_unless_the_view_has_changed_them():
    tokenizer = caption_view().tokenizer
    ids, lengths = tokenizer.encode(["A Red-Ring, No. 0!", "Another ONE", "A Red-Ring, No. 2!", "a Changed text"])
    snapshot = Snapshot(num_samples=4)
    snapshot.load_state_dict({"index": torch.arange(4), "text": ids, "text_length": lengths})
    assert snapshot.captions("text", Written(), tokenizer).tolist() == [
        "A Red-Ring, No. 0!",
        "Another ONE",
        "a red - ring , no . 2 !",
        "a changed text",
    ]
