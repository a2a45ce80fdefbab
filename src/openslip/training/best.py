"""The best result of each evaluation during a run, by its headline metric."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from openslip.evaluation.evaluation import Evaluation, with_unit


class Best(NamedTuple):
    """The best value of an evaluation's headline metric, and the step at which it was first reached."""

    metric: str
    value: float
    step: int

    def line(self) -> str:
        """Describe the result in a few words."""
        return f"best {self.metric} {with_unit(self.metric, self.value)} at step {self.step}"


def better(evaluation: Evaluation, former: Best | None, metrics: Mapping[str, float], step: int) -> Best | None:
    """Return the better of the best result so far and a new result; if they are equal, the earlier one.

    Args:
        evaluation: the evaluation, which says which metric counts and which of its values are better.
        former: best result so far; ignored if it is of another metric.
        metrics: metrics of the new result.
        step: step of the new result.
    """
    metric = evaluation.headline_metric
    value = metrics.get(metric, math.nan)
    if evaluation.better is None or not math.isfinite(value):
        return former
    if former is None or former.metric != metric:
        return Best(metric, value, step)
    is_better = value > former.value if evaluation.better == "higher" else value < former.value
    return Best(metric, value, step) if is_better else former
