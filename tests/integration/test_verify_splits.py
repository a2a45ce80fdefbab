"""`openslip verify --splits` passes what is exact and notices what is not."""

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from marks import slow
from small_models import METHODS, small_batch, small_model
from torch import Tensor, nn

from openslip.__main__ import main
from openslip.errors import UserError
from openslip.objectives.clip import CLIP
from openslip.objectives.objective import Objective
from openslip.objectives.tiles import is_large
from openslip.training.microbatch import loss_in_micro_batches
from openslip.training.towers import prepare_towers
from openslip.verify import show, splits
from openslip.verify.splits import (
    GLOBAL_BATCH,
    IN_ONE_PROCESS,
    ON_RANKS,
    TILE,
    WHOLE,
    StepParts,
    refuse_randomness,
    split_rows,
)

TINY = [
    *("model=slip_tiny", "image_size=16", "model.image_tower.arguments.embed_dim=24"),
    *("model.image_tower.arguments.depth=1", "model.text_tower.width=8", "model.embed_dim=8"),
]
SPLITS = (*IN_ONE_PROCESS, *ON_RANKS)


class Mixing(CLIP):
    """Centres the features of a micro-batch, which an objective must not do in `encode`."""

    def encode(self, model: nn.Module, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {key: x - x.mean(dim=0) for key, x in super().encode(model, batch).items()}  # pyright: ignore


class Faulty(CLIP):
    """Its loss is off where it is made in tiles, its last act where a rank has 6 samples."""

    def loss(self, model: Any, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        self.local = len(features["image"])
        terms = super().loss(model, features)
        return terms | {"loss": terms["loss"] * (1.001 if is_large(self.local) else 1.0)}

    def after_step(self, model: Any, /) -> None:
        super().after_step(model)
        with torch.no_grad():
            model.logit_scale += 1e-6 * (self.local == 6)


def parts(model: nn.Module, objective: Objective) -> StepParts:
    return StepParts(model, objective, partial(torch.optim.AdamW, lr=1e-3), weight_decay=0.1, layer_decay=0.7)


def clip(objective: type[CLIP]) -> StepParts:
    return parts(small_model("clip")[0], objective(gather_with_grad=True, max_logit_scale=4.6, same_caption="negative"))


def test_splits_cover_the_batch_in_one_two_and_five_micro_batches_plain_and_in_tiles():
    assert WHOLE.sizes == (GLOBAL_BATCH,)
    for some, ranks in (((WHOLE, *IN_ONE_PROCESS), 1), (ON_RANKS, 2)):
        assert {split.ranks for split in some} == {ranks}
        assert {ranks * sum(split.sizes) for split in some} == {GLOBAL_BATCH}
        assert {(split.tile, len(split.sizes)) for split in some} == {
            *((None, 1), (None, 2), (None, 5)),
            *((TILE, 1), (TILE, 5)),
        }
        assert all(len(set(split.sizes)) > 1 for split in some if len(split.sizes) > 1)
        assert all(GLOBAL_BATCH // ranks % split.tile for split in some if split.tile)


@pytest.mark.parametrize("method", ["slip", *(slow(method) for method in METHODS if method != "slip")])
def test_every_split_is_within_tolerance(method: str, capsys: pytest.CaptureFixture[str]):
    rows = split_rows(parts(*small_model(method)), small_batch(GLOBAL_BATCH))
    kinds = {"loss terms", "gradients", "weights"} | ({"statistics"} if method != "clip" else set())
    expected = {f"{split}: {kind}" for split in SPLITS for kind in kinds}
    assert {row.quantity for row in rows} == expected
    assert len(rows) == len(expected)
    assert all(row.ok for row in rows), [row for row in rows if not row.ok]
    assert show(rows, "here") == 0
    assert f"{len(rows)} of {len(rows)} quantities within tolerance (here)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_tower_with_batch_norm_passes_on_ranks_and_skips_micro_batches():
    model, objective = small_model("slip", image="batch norm")
    with pytest.raises(UserError, match=r"trainer\.devices .* \(BatchNorm2d\) mixes only the samples of each rank"):
        split_rows(parts(model, objective), small_batch(GLOBAL_BATCH))
    prepare_towers(model, {})
    without_blocks = dataclasses.replace(parts(model, objective), layer_decay=None)
    *rows, skipped = split_rows(without_blocks, small_batch(GLOBAL_BATCH))
    kinds = ("loss terms", "gradients", "statistics", "weights")
    whole = [split for split in SPLITS if len(split.sizes) == 1]
    assert [row.quantity for row in rows] == [f"{split}: {kind}" for split in whole for kind in kinds]
    assert all(row.ok for row in rows), [row for row in rows if not row.ok]
    assert skipped.line(0).endswith("image_tower has batch norm that is not frozen")
    assert skipped.deviation is None


def test_faults_are_noticed_where_they_are_and_nowhere_else(capsys: pytest.CaptureFixture[str]):
    rows = split_rows(clip(Faulty), small_batch(GLOBAL_BATCH))
    # AdamW's first step is nearly the same at any scale of the gradient
    in_tiles = {(split, kind) for split in SPLITS if split.tile for kind in ("loss terms", "gradients")}
    expected = in_tiles | {(split, "weights") for split in ON_RANKS}
    assert {row.quantity for row in rows if not row.ok} == {f"{split}: {kind}" for split, kind in expected}
    assert show(rows, "here") == 1
    assert capsys.readouterr().out.count("OUT") == len(expected)


def test_an_objective_that_mixes_the_samples_of_a_micro_batch_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(splits, "rows_on_ranks", lambda *_: [])
    rows = split_rows(clip(Mixing), small_batch(GLOBAL_BATCH))
    assert {row.quantity for row in rows if not row.ok} == {
        f"{split}: {kind}"
        for split in IN_ONE_PROCESS
        if len(split.sizes) > 1
        for kind in ("loss terms", "gradients", "weights")
    }


def test_model_and_objective_are_left_as_they_were():
    model, objective = small_model("slip")
    model.float().eval()
    objective.float().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    statistics = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    for _ in splits.quantities(parts(model, objective), small_batch(4), (1, 3), None):
        pass
    assert not model.training
    assert not objective.training
    assert all(parameter.grad is None for parameter in (*model.parameters(), *objective.parameters()))
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    torch.testing.assert_close(dict(objective.state_dict()), statistics, rtol=0, atol=0)


def test_weights_are_those_of_the_optimizer_and_its_groups():
    small = parts(*small_model("clip"))
    found = {
        (kind, name): torch.from_numpy(array.copy())
        for kind, name, array in splits.quantities(small, small_batch(4), (4,), None)
    }
    name = "model.image_tower.trunk.blocks.1.mlp.fc1.weight"
    weight, gradient = dict(small.model.named_parameters())[name.removeprefix("model.")], found["gradients", name]
    # AdamW's first step by its formula, one block of layer decay down: m / sqrt(v) is the gradient's sign but for eps
    lr = 0.7e-3
    expected = weight * (1 - lr * 0.1) - lr * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(found["weights", name], expected.detach(), rtol=0, atol=1e-14)


def test_a_model_that_draws_at_random_is_refused_by_key():
    model, objective = small_model("clip")
    model.image_tower.trunk.pos_drop = nn.Dropout(0.5)  # pyright: ignore
    with pytest.raises(UserError, match=r"features image are random in training.*towers\.image\.patch_dropout"):
        refuse_randomness(parts(model, objective), small_batch(GLOBAL_BATCH))


def verify_splits(*settings: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["verify", "--splits", *settings])
    return ended.value.code


def test_the_command_proves_a_config_and_says_what_it_covers(capsys: pytest.CaptureFixture[str]):
    assert verify_splits(*TINY) == 0
    *rows, summary, covered, not_covered = capsys.readouterr().out.splitlines()[1:]
    assert len(rows) == 4 * len(SPLITS)
    assert summary == f"{len(rows)} of {len(rows)} quantities within tolerance (cpu, float64)"
    assert "tiles" in covered
    assert "torch.compile" in not_covered


def test_the_command_takes_the_step_of_the_config(monkeypatch: pytest.MonkeyPatch):
    steps: list[StepParts] = []
    monkeypatch.setattr(splits, "split_rows", lambda step, _: steps.append(step) or [])
    verify_splits(*TINY, "optim.layer_decay=0.7", "optim.weight_decay=0.3", "optim.lr=0.002")
    (step,) = steps
    assert (step.layer_decay, step.weight_decay) == (0.7, 0.3)
    assert step.optimizer([{"params": [nn.Parameter(torch.zeros(1))]}]).defaults["lr"] == 0.002


def test_the_command_fails_where_one_split_has_another_gradient(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def off_in_two_micro_batches(objective: Objective, model: nn.Module, batch: Any, sizes: tuple[int, ...]) -> Any:
        terms = loss_in_micro_batches(objective, model, batch, sizes)
        if len(sizes) == 2:
            terms["loss"].register_hook(lambda gradient: gradient * (1 + 1e-6))
        return terms

    monkeypatch.setattr(splits, "loss_in_micro_batches", off_in_two_micro_batches)
    monkeypatch.setattr(splits, "rows_on_ranks", lambda *_: [])  # other processes would not see the fault
    assert verify_splits(*TINY) == 1
    out = [line for line in capsys.readouterr().out.splitlines() if "OUT" in line]
    assert [line.split("  ")[0] for line in out] == ["1 process x 2 micro-batches (5+7): gradients"]
