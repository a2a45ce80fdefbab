"""Learning-rate schedules and scheduled numbers of objectives against their definitions."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from openslip.config.build import build_objective
from openslip.config.check import check_root_values, mismatches
from openslip.config.compose import compose_config
from openslip.errors import UserError
from openslip.objectives.objective import Objective
from openslip.schedules import LearningRate, PiecewiseLinear, WarmupConstant, WarmupRsqrt

RAMP = "{_target_: openslip.schedules.PiecewiseLinear, at: [0, 0.1], values: [0, 1]}"


def constant(**changes: float) -> WarmupConstant:
    settings = {"lr_start": 0.0, "lr": 1.0, "lr_end": 0.1, "cooldown": 0.2, "warmup_steps": 11, "max_steps": 100}
    return WarmupConstant(**settings | changes)  # pyright: ignore[reportArgumentType]


def rsqrt(**changes: float) -> WarmupRsqrt:
    settings = {"lr_start": 0.0, "lr": 2.0, "timescale": 40.0, "cooldown": 0.1, "warmup_steps": 11, "max_steps": 200}
    return WarmupRsqrt(**settings | changes)  # pyright: ignore[reportArgumentType]


def test_a_constant_rate_has_a_warm_up_and_a_cooldown():
    rates = [constant()(step) for step in range(100)]
    assert rates[:12] == pytest.approx([*(step / 10 for step in range(11)), 1.0])
    assert rates[11:81] == [1.0] * 70
    assert rates[80:] == pytest.approx([1.0 - 0.9 * step / 20 for step in range(20)])
    assert constant()(1000) == rates[99]
    assert [constant(cooldown=0)(step) for step in (11, 99, 1000)] == [1.0] * 3
    assert [constant(cooldown=1)(step) for step in (10, 11, 12)] == pytest.approx([1.0, 1.0, 1.0 - 0.9 / 89])


def test_a_cooldown_takes_its_share_of_the_steps_though_the_product_is_a_little_less():
    assert 0.29 * 100 < 29  # in floating-point numbers
    rates = [constant(cooldown=0.29)(step) for step in range(71, 100)]
    assert rates == pytest.approx([1.0 - 0.9 * step / 29 for step in range(29)])


def test_an_inverse_square_root_rate_is_big_visions():
    # Its trainer: lr / sqrt(max(1, step + shift) / timescale), with shift = timescale - warm-up.
    for step in range(11, 180):
        assert rsqrt()(step) == pytest.approx(2.0 / math.sqrt((step + 40 - 11) / 40), rel=1e-12)
    assert [rsqrt()(step) for step in (0, 5, 10, 11)] == pytest.approx([0.0, 1.0, 2.0, 2.0])
    last = [rsqrt()(step) / rsqrt(cooldown=0)(step) for step in range(180, 200)]
    assert last == pytest.approx([1 - step / 20 for step in range(20)])


@pytest.mark.parametrize("make", [constant, rsqrt])
def test_a_run_shorter_than_its_warm_up_has_no_cooldown(make: Callable[..., LearningRate]):
    schedule = make(max_steps=3)
    assert [schedule(step) / schedule.lr for step in range(3)] == pytest.approx([0.0, 0.1, 0.2])


def test_wrong_shares_and_timescales_are_refused():
    for make in (constant, rsqrt):
        with pytest.raises(UserError, match=r"cooldown=1\.5: expected a share of the run's steps"):
            make(cooldown=1.5)
    with pytest.raises(UserError, match="timescale=0: expected a number of steps above 0"):
        rsqrt(timescale=0)


def test_a_number_is_linear_between_its_points():
    number = PiecewiseLinear(at=[0.1, 0.2, 0.6], values=[3.0, 1.0, 2.0])
    at_steps = {0: 3.0, 10: 3.0, 15: 2.0, 20: 1.0, 40: 1.5, 60: 2.0, 99: 2.0}
    assert {step: number(step, 100) for step in at_steps} == pytest.approx(at_steps)
    assert PiecewiseLinear(at=[0.5], values=[7])(99, 100) == 7.0


def test_points_that_are_no_increasing_shares_are_refused():
    for at in ([0.2, 0.1], [0.1, 0.1], [-0.1, 0.2], [0.0, 1.5]):
        with pytest.raises(UserError, match="expected increasing shares of the run from 0 to 1"):
            PiecewiseLinear(at=at, values=[0.0, 1.0])
    for values in ([], [1.0, 2.0, 3.0]):
        with pytest.raises(UserError, match="expected a number for each of the 2 points"):
            PiecewiseLinear(at=[0.0, 1.0], values=values)


def test_a_number_of_an_objective_may_be_a_schedule():
    config, _ = compose_config("train", ["model=slip_tiny", f"objective.ssl_scale={RAMP}"])
    check_root_values(config)
    objective = build_objective(config["objective"])
    assert vars(objective)["ssl_scale"] == 0.0
    assert objective.begin_step(5, 100) == {"ssl_scale": 0.5}
    assert vars(objective)["ssl_scale"] == 0.5
    assert build_objective(compose_config("train", ["model=slip_tiny"])[0]["objective"]).begin_step(5, 100) == {}


def test_the_values_of_a_schedule_are_checked_as_the_number_is():
    config, _ = compose_config("train", ["model=slip_tiny", f"objective.ssl_scale={RAMP.replace('0, 1]', '-1, 1]')}"])
    with pytest.raises(UserError, match=r"objective\.ssl_scale=-1: expected a number of at least 0"):
        check_root_values(config)
    with pytest.raises(UserError, match=r"objective\.ssl_scale.*expected a number"):
        compose_config("train", ["model=slip_tiny", "objective.ssl_scale={at: [0, 1]}"])


class Renaming(Objective):
    """Keeps its argument under another name."""

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        self.kept = weight

    def encode(self, model, batch, /):
        return batch

    def loss(self, model, features, /):
        return features


def test_a_number_that_an_objective_does_not_keep_is_refused():
    ramp = {"_target_": "openslip.schedules.PiecewiseLinear", "at": [0.0, 1.0], "values": [0.0, 1.0]}
    with pytest.raises(UserError, match=r"objective\.weight: Renaming has no number weight"):
        build_objective({"_target_": f"{__name__}.Renaming", "weight": ramp})


def test_only_numbers_of_objectives_follow_a_schedule():
    ramp = {"_target_": "openslip.schedules.PiecewiseLinear", "at": [0.0, 1.0], "values": [0.0, 1.0]}
    assert list(mismatches("objective.ssl_scale", ramp, 1.0)) == []
    assert list(mismatches("objective.declip.simsiam_scale", ramp, 0.2)) == []
    assert list(mismatches("objective.views.text.probability", ramp, 0.15)) != []
    assert list(mismatches("objective.model.token_dim", ramp, 256)) != []


def test_a_number_of_an_objective_inside_the_objective_follows_a_schedule():
    words = ["model=defilip_tiny", f"objective.declip.simsiam_scale={RAMP}"]
    config, _ = compose_config("train", words)
    objective: Any = build_objective(config["objective"])
    assert objective.begin_step(5, 100) == {"declip.simsiam_scale": 0.5}
    assert (objective.declip.simsiam_scale, objective.declip.clip_scale) == (0.5, 0.4)


def test_an_error_names_the_numbers_that_can_follow_a_schedule():
    rising = RAMP.replace("[0, 1]}", "[50, 100]}")
    config, _ = compose_config("train", ["model=defilip_tiny", f"objective.declip.largest_factor={rising}"])
    numbers = "declip.clip_scale, declip.masked_scale, declip.neighbour_scale"
    with pytest.raises(UserError, match=rf"objective\.declip\.largest_factor: DeFILIP has no number .*: {numbers}"):
        build_objective(config["objective"])
