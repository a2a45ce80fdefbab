"""Contract: an evaluation computes metrics of a model (a `Bundle`), both during training and afterwards."""

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np

from openslip.data.source import Source
from openslip.evaluation.metrics import METRICS
from openslip.inference.bundle import Bundle


class Evaluation(ABC):
    """Base class of evaluations; a subclass only has to implement `run`.

    Tokenizer, transform and device come from the bundle, never from a config.

    Attributes:
        every_n_epochs: epochs between evaluations in training, set from the config key of the same name; 0 for none.
            Training always evaluates at its end, and only there if both intervals are 0.
        every_n_steps: steps between evaluations in training, set from the config key; 0 for none.
        headline_metric: name of the metric that stands for the evaluation in tables of results.
        better: `higher` or `lower`: which values of `headline_metric` are better, so that training keeps the best one;
            None for a metric that has no best value.
        arrays: arrays of the last `run` for the report, by name; dtype object is not allowed.
        notes: texts that `openslip eval` prints in its table beside the metrics, by name.
    """

    every_n_epochs: int = 0
    every_n_steps: int = 0
    headline_metric: str = "top1"
    better: Literal["higher", "lower"] | None = "higher"
    arrays: dict[str, np.ndarray] = {}  # noqa: RUF012 - `run` assigns a new dict and never changes this one
    notes: dict[str, str] = {}  # noqa: RUF012 - as above

    @abstractmethod
    def run(self, bundle: Bundle) -> dict[str, float]:
        """Return the model's metrics by name; every rank must call this and gets the same metrics."""

    def sources(self) -> dict[str, Source]:
        """Return the sources among the evaluation's attributes, by the attribute's name."""
        return {name: part for name, part in vars(self).items() if isinstance(part, Source)}

    def problems(self) -> list[str]:
        """List what the evaluation's sources skipped or repaired, one line per kind."""
        return [line for source in self.sources().values() for line in source.problems]

    def headline(self, metrics: dict[str, float]) -> str:
        """Summarise in one line the metrics that `run` returned."""
        return f"{type(self).__name__}: " + ", ".join(
            f"{name} {with_unit(name, value)}" for name, value in metrics.items()
        )


# Beginnings of the names of metrics that are in per cent.
SHARES = (
    "top",
    "chance",
    "mean_per_class",
    "mean_of_top1_top5",
    "roc_auc",
    "mean_average_precision",
    "fpr95",
    "harmonic_mean",
)


def with_unit(metric: str, value: float) -> str:
    """Format a metric for people: counts as whole numbers, shares in per cent."""
    if metric.startswith("num_"):
        return f"{value:.0f}"
    return f"{value:.2f} %" if is_share(metric) else f"{value:.4g}"


def is_share(metric: str) -> bool:
    """Whether a metric is in per cent."""
    return metric.startswith(SHARES) or metric.endswith(("_acc", "_percent")) or "recall" in metric


def top1_line(title: str, metrics: dict[str, float]) -> str:
    """Return the headline of a classification: top-1 accuracy and chance level."""
    return f"{title}: {metrics['top1']:.1f} % (chance {metrics['chance']:.1f} %)"


def classification_line(title: str, metrics: dict[str, float], name: str) -> str:
    """Return the headline of a classification: the metric of this name, and its value for a guess.

    Args:
        title: name of the evaluation.
        metrics: its metrics, with `chance`, the expected `top1` of a guess.
        name: a name in `openslip.evaluation.metrics.METRICS`.
    """
    if name == "top1":
        return top1_line(title, metrics)
    words, factor = METRICS[name]
    return f"{title}: {words} {metrics[name]:.1f} % (chance {factor * metrics['chance']:.1f} %)"
