"""Clipping, loss scaling, averaged weights and decayed rates against the same steps written out."""

import copy
from typing import Any

import pytest
import torch
from on_ranks import skipped_under_a_scaler
from pretraining import BATCH, fit, pretrainer
from pytorch_lightning.plugins.precision import MixedPrecision
from ranks import Ranks
from small_models import METHODS, small_batch

from openslip.models.batch_norm import GlobalBatchNorm
from openslip.objectives.slip import SLIP
from openslip.training.callbacks.finite import Finite
from openslip.training.pretrainer import Pretrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


def by_hand(made: Pretrainer, steps: int, *, clip_norm: float | None = None) -> list[dict[str, torch.Tensor]]:
    """The weights after every step of a plain loop."""
    model, objective = copy.deepcopy(made.model), copy.deepcopy(made.objective)
    optimizer: Any = made.make_optimizer([{"params": []}])
    optimizer.param_groups.clear()
    named = [*model.named_parameters(), *objective.named_parameters()]
    for name, parameter in named:  # one group each: the rule of decay is written out again
        decays = parameter.ndim >= 2 and not any(word in name for word in ("bias", "ln", "bn"))
        optimizer.add_param_group({"params": [parameter], "weight_decay": made.weight_decay if decays else 0.0})
    found = []
    for step in range(steps):
        optimizer.zero_grad()
        objective.loss(model, objective.encode(model, small_batch(BATCH)))["loss"].backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([parameter for _, parameter in named], clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = made.schedule(step)
        optimizer.step()
        objective.after_step(model)
        found.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    return found


def assert_weights(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-7, atol=1e-9, msg=f"{name} differs")


@pytest.mark.parametrize("micro_batch_size", [None, 5])
@pytest.mark.parametrize("method", METHODS)
def test_clipped_steps_equal_a_plain_loop(method: str, micro_batch_size: int | None):
    made = pretrainer(method, steps=3, clip_norm=0.05)
    made.micro_batch_size = micro_batch_size
    expected = by_hand(made, 3, clip_norm=0.05)
    unclipped = by_hand(made, 3)
    fit(made, 3)
    assert float(made.terms["gradient_norm"]) > 0.05
    assert_weights(made.model, expected[-1])
    with pytest.raises(AssertionError):  # clipping matters: AdamW forgets a constant factor, but this one varies
        assert_weights(made.model, unclipped[-1])


def half(scale: float) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))  # pyright: ignore[reportPrivateImportUsage]


def test_a_loss_scaler_changes_neither_the_norm_nor_the_clipping():
    norms, weights = [], []
    for plugins in ([], [half(2.0**4)], [half(2.0**10)]):
        made = pretrainer("slip", steps=2, dtype=torch.float32, clip_norm=0.05)
        fit(made, 2, plugins=plugins)
        norms.append(float(made.terms["gradient_norm"]))
        weights.append(torch.cat([p.detach().flatten() for p in made.parameters()]))
    # fp16 keeps 11 bits; were the factor 16 or 1024 left in the gradients, the norm would show it.
    assert norms[1:] == pytest.approx([norms[0]] * 2, rel=0.05)
    assert (weights[1] - weights[2]).norm() < 0.3 * 1e-3 * len(weights[0]) ** 0.5


def test_a_scaler_that_overflows_skips_the_step_and_backs_off():
    made = pretrainer("clip", steps=1, dtype=torch.float32, clip_norm=0.05)
    before = [p.detach().clone() for p in made.parameters()]
    plugin = half(2.0**60)
    fit(made, 1, plugins=[plugin])
    for parameter, was in zip(made.parameters(), before, strict=True):
        assert torch.equal(parameter.detach(), was)
    assert plugin.scaler is not None
    assert plugin.scaler.get_scale() == 2.0**59


def test_averaged_weights_are_the_moving_average_and_are_evaluated():
    made = pretrainer("slip", steps=4, ema_decay=0.8)
    average = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    for weights in by_hand(made, 4):
        average = {name: 0.8 * average[name] + 0.2 * weights[name] for name in average}
    fit(made, 4)
    assert made.evaluated is made.averaged
    assert_weights(made.evaluated, average)
    assert {f"averaged.{name}" for name in average} <= set(made.state_dict())
    optimized = {id(p) for group in made.configure_optimizers().param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in made.evaluated.parameters()}


class LossNaN(SLIP):
    """Not finite from the third step on."""

    steps = 0

    def loss(self, model: Any, features: dict[str, torch.Tensor], /) -> dict[str, torch.Tensor]:
        self.steps += 1
        terms = super().loss(model, features)
        return terms | {"loss": terms["loss"] * (torch.nan if self.steps > 2 else 1.0)}


@pytest.mark.parametrize("fused", [True, False])
def test_steps_that_are_skipped_leave_weights_and_average_and_log_no_norm(fused: bool):
    ends = []
    for steps in (2, 5):
        made = pretrainer("slip", steps=5, ema_decay=0.8, clip_norm=0.05)
        made.objective.__class__ = LossNaN
        made.make_optimizer = lambda groups: torch.optim.AdamW(groups, lr=1e-3, fused=fused)
        fit(made, steps, callbacks=[Finite(stop_after=10)])
        ends.append((made.state_dict(), made.terms["gradient_norm"]))
    (before, norm), (after, no_norm) = ends
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert norm.isfinite()
    assert no_norm.isnan()


class Queue(LossNaN):
    """Counts the steps in a small buffer, and in a large one those that are not skipped."""

    small: torch.Tensor
    queue: torch.Tensor

    def setup(self, model: Any, /) -> None:
        super().setup(model)
        self.register_buffer("small", torch.zeros(1))
        self.register_buffer("queue", torch.zeros(2**18 + 1))

    def after_step(self, model: Any, /) -> None:
        self.small += 1
        self.queue += (~self.skipped).float()


def test_a_large_buffer_is_not_copied_and_stays_as_the_objective_leaves_it():
    made = pretrainer("slip", steps=5)
    objective = made.objective
    objective.__class__ = Queue
    assert isinstance(objective, Queue)
    objective.setup(made.model)
    made.to(torch.float64)
    callback = Finite(stop_after=10)
    fit(made, 5, callbacks=[callback])
    assert int(objective.small) == 2  # restored in each of three steps
    assert torch.equal(objective.queue, torch.full_like(objective.queue, 2))
    assert all(len(copied.flatten()) <= 2**18 for _, copied in callback.statistics)
    assert bool(objective.skipped)


def test_under_a_loss_scaler_all_ranks_skip_where_one_loss_is_not_finite(two_ranks: Ranks):
    for skipped in two_ranks(skipped_under_a_scaler):
        assert skipped == [False, True, False]


def test_without_an_average_the_model_itself_is_evaluated():
    made = pretrainer("clip", steps=1)
    assert made.evaluated is made.model


def test_layer_decay_scales_the_rate_of_every_group():
    made = pretrainer("clip", steps=2, layer_decay=0.5)
    trainer = fit(made, 2)
    rates = {group["lr"] / made.schedule(1) for group in trainer.optimizers[0].param_groups}
    assert sorted(rates) == pytest.approx([0.125, 0.25, 0.5, 1.0])  # two blocks: heads, second, first, embeddings


def test_batch_norm_of_an_objectives_heads_is_that_of_the_global_batch(monkeypatch: pytest.MonkeyPatch):
    setup = SLIP.setup

    def with_batch_norm(objective: SLIP, model: Any, /) -> None:
        setup(objective, model)
        objective.extra = torch.nn.BatchNorm1d(4)

    monkeypatch.setattr(SLIP, "setup", with_batch_norm)
    assert isinstance(pretrainer("slip", steps=1).objective.extra, GlobalBatchNorm)
