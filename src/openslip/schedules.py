"""Numbers that are functions of the step: learning rates with a warm-up, and numbers of an objective.

A schedule has no state, so a resumed run has the numbers of an undisturbed one.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence

from openslip.errors import UserError


class LearningRate(ABC):
    """Learning rate as a function of the step, over the length of a run.

    Attributes:
        lr: highest learning rate.
        warmup_steps: length of the warm-up in steps.
        max_steps: length of the run in steps.
    """

    lr: float
    warmup_steps: int
    max_steps: int

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the learning rate of a step; the first step is 0."""


class WarmupConstant(LearningRate):
    """Linear warm-up, a constant learning rate, then a linear cooldown.

    The last step of the cooldown comes one step before `lr_end` would be reached. Hägele et al. 2024, arXiv:2405.18392.

    Args:
        lr_start: learning rate at step 0.
        lr: learning rate at the last step of the warm-up and until the cooldown.
        lr_end: limit of the cooldown.
        cooldown: share of the run's steps that the cooldown takes, from 0 to 1.
        warmup_steps: length of the warm-up in steps.
        max_steps: length of the run in steps.

    Raises:
        UserError: the cooldown is no share.
    """

    def __init__(
        self, *, lr_start: float, lr: float, lr_end: float, cooldown: float, warmup_steps: int, max_steps: int
    ) -> None:
        self.lr_start = lr_start
        self.lr = lr
        self.lr_end = lr_end
        self.warmup_steps = warmup_steps
        self.max_steps = max_steps
        self.cooldown_steps = length_of_cooldown(cooldown, warmup_steps, max_steps)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return warm_up(step, self.lr_start, self.lr, self.warmup_steps)
        remaining = max(self.max_steps - step, 1)
        if remaining >= self.cooldown_steps:
            return self.lr
        return self.lr_end + (self.lr - self.lr_end) * remaining / self.cooldown_steps


class WarmupRsqrt(LearningRate):
    """Linear warm-up, then the inverse square root of the step, then a linear cooldown to 0.

    After the warm-up of w steps, the learning rate at step t is lr (1 + (t - w) / timescale)^(-1/2), without the
    cooldown's factor. Zhai et al. 2022, arXiv:2106.04560, section 3.5.

    Args:
        lr_start: learning rate at step 0.
        lr: learning rate at the end of the warm-up.
        timescale: steps after the warm-up until the learning rate has fallen to lr / sqrt(2).
        cooldown: share of the run's steps that the cooldown takes, from 0 to 1; it multiplies the learning rate by a
            factor that falls to 0, which would be reached one step after the last one.
        warmup_steps: length of the warm-up in steps.
        max_steps: length of the run in steps.

    Raises:
        UserError: the cooldown is no share, or the timescale is not positive.
    """

    def __init__(
        self, *, lr_start: float, lr: float, timescale: float, cooldown: float, warmup_steps: int, max_steps: int
    ) -> None:
        if timescale <= 0:
            raise UserError(f"timescale={timescale}: expected a number of steps above 0, e.g. 10000")
        self.lr_start = lr_start
        self.lr = lr
        self.timescale = timescale
        self.warmup_steps = warmup_steps
        self.max_steps = max_steps
        self.cooldown_steps = length_of_cooldown(cooldown, warmup_steps, max_steps)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return warm_up(step, self.lr_start, self.lr, self.warmup_steps)
        rate = self.lr * (1 + (step - self.warmup_steps) / self.timescale) ** -0.5
        remaining = max(self.max_steps - step, 1)
        return rate if remaining >= self.cooldown_steps else rate * remaining / self.cooldown_steps


def warm_up(step: int, lr_start: float, lr: float, warmup_steps: int) -> float:
    """Return the learning rate of a step on the line from `lr_start` at step 0 to `lr` at the last warm-up step."""
    return lr_start + (lr - lr_start) * step / max(warmup_steps - 1, 1)


def length_of_cooldown(cooldown: float, warmup_steps: int, max_steps: int) -> int:
    """Return the steps of a cooldown that takes a share of the run, at most those after the warm-up.

    Raises:
        UserError: the cooldown is no share.
    """
    if not 0 <= cooldown <= 1:
        raise UserError(f"cooldown={cooldown}: expected a share of the run's steps from 0 to 1, e.g. 0.2")
    return min(round(cooldown * max_steps), max(max_steps - warmup_steps, 0))


class PiecewiseLinear:
    """Number that is given at some points of a run, linear between them, and constant before and after them.

    Args:
        at: points of the run, as increasing shares of its steps: 0 is the first step, 1 the end.
        values: number at each of these points.

    Raises:
        UserError: the lists have different lengths, are empty, or the points are no increasing shares.
    """

    def __init__(self, *, at: Sequence[float], values: Sequence[float]) -> None:
        if len(at) != len(values) or not at:
            raise UserError(f"values={list(values)}: expected a number for each of the {len(at)} points of `at`")
        if sorted({*at}) != list(at) or not 0 <= at[0] <= at[-1] <= 1:
            raise UserError(f"at={list(at)}: expected increasing shares of the run from 0 to 1, e.g. at=[0, 0.1]")
        self.at = [float(share) for share in at]
        self.values = [float(value) for value in values]

    def __call__(self, step: int, max_steps: int) -> float:
        """Return the number at a step of a run of `max_steps` steps; the first step is 0."""
        share = step / max_steps
        later = bisect_right(self.at, share)
        if later in (0, len(self.at)):
            return self.values[max(later - 1, 0)]
        (start, end), (low, high) = self.at[later - 1 : later + 1], self.values[later - 1 : later + 1]
        return low + (high - low) * (share - start) / (end - start)
