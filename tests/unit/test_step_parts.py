"""Small parts of a step, each by itself: the clamp, the streak of skipped steps, saves, the EMA's buffers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import pytorch_lightning as pl
import torch
from small_models import small_model
from timm.models.vision_transformer import Block
from torch import nn

from openslip.errors import CheckpointError, NonFiniteError
from openslip.models.class_token import LastBlock
from openslip.objectives.clip import CLIP
from openslip.objectives.neg_clip import NegCLIP
from openslip.objectives.unicl import UniCL
from openslip.training import checkpoint_io
from openslip.training.callbacks import resume, room, save
from openslip.training.callbacks.finite import Finite, refuse_non_finite
from openslip.training.callbacks.resume import Resume, random_state
from openslip.training.callbacks.room import Room
from openslip.training.callbacks.save import Save
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.gradients import gradient_norm, marked
from openslip.training.logging.csv_logger import CsvLogger
from openslip.training.pretrainer import Pretrainer


def like(kind: type, **attributes: Any) -> Any:
    """Something that passes for an object of a class and has these attributes."""
    stand_in = MagicMock(spec=kind)
    for name, value in attributes.items():
        setattr(stand_in, name, value)
    return stand_in


@pytest.mark.parametrize("method", ["clip", "slip"])
@pytest.mark.parametrize(("before", "after"), [(-0.5, 0.0), (0.5, 0.5), (3.0, 3.0), (4.7, 4.6052), (9.0, 4.6052)])
def test_the_logit_scale_is_clamped_after_a_step(method: str, before: float, after: float):
    model, objective = small_model(method)
    objective.max_logit_scale = 4.6052  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        model.get_parameter("logit_scale").fill_(before)
    objective.after_step(model)
    assert model.get_parameter("logit_scale").item() == pytest.approx(after)


def test_the_clamp_is_clips_own_where_nothing_else_is_said():
    model, _ = small_model("clip")
    with torch.no_grad():
        model.get_parameter("logit_scale").fill_(5.0)
    CLIP(gather_with_grad=True, max_logit_scale=2.0, same_caption="negative").after_step(model)  # pyright: ignore[reportArgumentType]
    assert model.get_parameter("logit_scale").item() == 2.0


@pytest.mark.parametrize("kind", [UniCL, NegCLIP])
def test_unicl_and_negclip_limit_the_logit_scale_as_clip_does(kind: type[UniCL] | type[NegCLIP]):
    model: Any = small_model("clip")[0]
    for before, after in ((-1.0, 0.0), (1.5, 1.5), (5.0, 2.0)):
        nn.init.constant_(model.logit_scale, before)
        kind(gather_with_grad=True, max_logit_scale=2.0).after_step(model)
        assert model.logit_scale.item() == after


def run_finite(finite: Finite, bad: list[bool], step: int = 0) -> None:
    """The hooks around steps of which some are skipped."""
    module = like(
        Pretrainer,
        device=torch.device("cpu"),
        step=step,
        terms={},
        objective=SimpleNamespace(skipped=torch.tensor(False)),
        buffers=lambda: iter(()),
    )
    trainer = like(pl.Trainer, precision_plugin=None)
    finite.on_train_start(trainer, module)
    for is_bad in bad:
        finite.on_train_batch_start(trainer, module, None, 0)
        module.objective.skipped = torch.tensor(is_bad)
        module.step += 1
        finite.on_train_batch_end(trainer, module, None, None, 0)
    finite.on_train_end(trainer, module)


def test_a_streak_of_skipped_steps_ends_with_a_good_one():
    finite = Finite(stop_after=3)
    run_finite(finite, 5 * [True, True, False])
    assert (int(finite.skipped), int(finite.in_a_row)) == (10, 0)
    with pytest.raises(NonFiniteError, match="3 steps in a row"):
        run_finite(Finite(stop_after=3), [False, True, True, True])


def test_a_streak_goes_on_after_a_resume():
    before = Finite(stop_after=3)
    run_finite(before, [False, True, True])
    after = Finite(stop_after=3)
    after.load_state_dict(before.state_dict())
    assert int(after.in_a_row) == 2
    with pytest.raises(NonFiniteError, match="3 steps in a row, up to step 4"):
        run_finite(after, [True], step=3)


def test_a_loss_that_is_infinite_gives_no_finite_gradient():
    for offset, expected in ((0.0, 1.0), (float("inf"), float("nan")), (float("nan"), float("nan"))):
        weight = torch.ones((), requires_grad=True)
        marked(weight + offset).backward()
        assert weight.grad is not None
        assert weight.grad.item() == pytest.approx(expected, nan_ok=True)


def test_a_step_without_gradients_has_no_finite_norm_and_is_skipped():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight, nn.Parameter(torch.ones(3))])
    assert gradient_norm(optimizer).isnan()
    weight.grad = torch.tensor([3.0, 4.0])
    assert gradient_norm(optimizer) == 5


@pytest.mark.parametrize(
    ("steps", "epochs", "last", "expected"),
    [
        *((1000, 1000, 7, [7]), (3, 1000, 7, [3, 6, 7]), (1000, 1, 7, [4, 7]), (1000, 2, 16, [8, 16])),
        *((None, None, 7, [7]), (None, 1, 7, [4, 7]), (3, None, 7, [3, 6, 7])),
    ],
)
def test_a_checkpoint_is_saved_at_intervals_and_after_the_last_step(
    monkeypatch: pytest.MonkeyPatch, steps: int | None, epochs: int | None, last: int, expected: list[int]
):
    found: list[int] = []
    monkeypatch.setattr(save, "begin_save", lambda trainer, module: found.append(module.step))
    callback = Save(every_minutes=None, every_n_steps=steps, every_n_epochs=epochs)
    for step in range(1, last + 1):
        module = like(Pretrainer, step=step, max_steps=last, data=SimpleNamespace(steps_per_epoch=4))
        callback.on_train_batch_end(like(pl.Trainer), module, None, None, 0)
    assert found == expected


def test_a_disk_without_room_for_a_checkpoint_ends_the_run_after_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(checkpoint_io.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_900_000))
    module = like(Pretrainer, step=1, max_steps=9, state_dict=lambda: {"weight": torch.zeros(100_000)})
    module.objective = SimpleNamespace(rank_buffers=dict)
    optimizer = like(torch.optim.Optimizer, state_dict=lambda: {"state": {0: torch.zeros(200_000)}})
    trainer = like(pl.Trainer, default_root_dir=tmp_path, optimizers=[optimizer])
    callback = Room()
    with pytest.raises(CheckpointError, match=r"1\.9 MB free, 2\.4 MB needed in .*checkpoints.*runs_dir=DIR"):
        callback.on_train_batch_end(trainer, module, None, None, 0)


def test_a_checkpoint_needs_room_for_the_buffers_of_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(checkpoint_io.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_900_000))
    monkeypatch.setattr(room, "world_size", lambda: 5)
    module = like(Pretrainer, step=1, max_steps=9, state_dict=dict)
    module.objective = SimpleNamespace(rank_buffers=lambda: {"queue": torch.zeros(50_000)})
    with pytest.raises(CheckpointError, match=r"1\.9 MB free, 2\.0 MB needed"):  # twice 5 x 0.2 MB
        Room().on_train_batch_end(like(pl.Trainer, default_root_dir=tmp_path, optimizers=[]), module, None, None, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, value: float):
    weights = {"a": torch.ones(3), "count": torch.tensor(3), "b": torch.tensor([1.0, value])}
    with pytest.raises(NonFiniteError, match=r"b and 0 more are not finite at step 5: nothing is saved"):
        refuse_non_finite(weights, 5)
    io = DurableCheckpointIO()
    trainer = like(
        pl.Trainer,
        default_root_dir=tmp_path,
        save_checkpoint=lambda path: io.save_checkpoint({"openslip": {"step": 5}, "state_dict": weights}, path),
        strategy=SimpleNamespace(checkpoint_io=io),
    )
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(NonFiniteError, match="b and 0 more are not finite at step 5"):
        save.save(trainer, like(Pretrainer, step=5))
    assert not list((tmp_path / "checkpoints").iterdir())
    refuse_non_finite({"a": torch.ones(3), "count": torch.tensor(3)}, 5)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_gets_its_own_random_state_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int):
    states = []
    for seed in (11, 12):
        torch.manual_seed(seed)
        states.append(random_state())
    expected = torch.rand(3, generator=torch.Generator().manual_seed(11 + rank))
    monkeypatch.setattr(resume, "rank", lambda: rank)
    callback = Resume(resumes=True, rows=CsvLogger(tmp_path / "metrics.csv"))
    callback.load_state_dict({"random": states})
    module = like(Pretrainer, step=4, data=SimpleNamespace(consumed=4))
    trainer = like(pl.Trainer, global_step=4)
    callback.on_train_start(trainer, module)
    assert torch.equal(torch.rand(3), expected)


def test_ranks_of_a_new_run_draw_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    for rank in range(3):
        torch.manual_seed(5)
        monkeypatch.setattr(resume, "rank", lambda rank=rank: rank)
        module = like(Pretrainer, step=0, data=SimpleNamespace(consumed=0))
        trainer = like(pl.Trainer, global_step=0)
        Resume(resumes=False, rows=CsvLogger(tmp_path / "metrics.csv")).on_train_start(trainer, module)
        drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("skipped", [False, True])
def test_the_average_copies_statistics_and_moves_weights_unless_the_step_was_skipped(skipped: bool):
    model, averaged = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(5.0)
        model.running_mean.fill_(3.0)  # pyright: ignore[reportOptionalMemberAccess]
        model.num_batches_tracked.fill_(7)  # pyright: ignore[reportOptionalMemberAccess]
    pretrainer: Any = SimpleNamespace(
        ema_decay=0.75, model=model, objective=SimpleNamespace(skipped=torch.tensor(skipped))
    )
    Pretrainer.average(pretrainer, averaged)
    assert averaged.weight.tolist() == ([1.0, 1.0] if skipped else [2.0, 2.0])  # 0.75 x 1 + 0.25 x 5
    assert torch.equal(averaged.get_buffer("running_mean"), model.get_buffer("running_mean"))
    assert int(averaged.get_buffer("num_batches_tracked")) == 7


def test_the_class_tokens_last_block_drops_paths_as_the_whole_block():
    torch.manual_seed(0)
    block = Block(8, 2, qkv_bias=True, drop_path=0.5, init_values=0.3).train()
    x = torch.randn(64, 5, 8)
    torch.manual_seed(1)
    whole = block(x)[:, :1]
    torch.manual_seed(1)
    torch.testing.assert_close(LastBlock()(block, x), whole)
    assert int((whole == x[:, :1]).all(dim=2).sum()) > 5  # some samples lost both paths
