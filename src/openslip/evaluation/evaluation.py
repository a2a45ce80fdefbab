"""Contract: an evaluation measures a bundle, in training and afterwards alike."""

from abc import ABC, abstractmethod

import numpy as np

from openslip.data.source import Source
from openslip.inference.bundle import Bundle


class Evaluation(ABC):
    """Only `run` must be written. Tokenizer, transform and device come with the bundle, never with a config.

    Attributes:
        every_n_epochs: how often training runs it; 0: at the end only. Set from the config's key of this name.
        every_n_steps: the same in steps.
        arrays: what the report shows of the last run, none of it of objects.
        notes: what stands in the table beside the metrics, by its name there.
    """

    every_n_epochs: int = 0
    every_n_steps: int = 0
    arrays: dict[str, np.ndarray] = {}  # noqa: RUF012 - replaced, never filled
    notes: dict[str, str] = {}  # noqa: RUF012 - as above

    @abstractmethod
    def run(self, bundle: Bundle) -> dict[str, float]:
        """The model's metrics by name; every rank calls this and gets the same ones."""

    def problems(self) -> list[str]:
        """What its sources skipped or repaired, one line per kind."""
        return [line for part in vars(self).values() if isinstance(part, Source) for line in part.problems]

    def headline(self, metrics: dict[str, float]) -> str:
        """One line that says what `run` returned."""
        return f"{type(self).__name__}: " + ", ".join(
            f"{name} {with_unit(name, value)}" for name, value in metrics.items()
        )


def with_unit(metric: str, value: float) -> str:
    """A metric as people read it: counts whole, shares in per cent."""
    if metric.startswith("num_"):
        return f"{value:.0f}"
    is_share = metric.startswith(("top", "chance")) or metric.endswith("_acc") or "_recall_" in metric
    return f"{value:.2f} %" if is_share else f"{value:.4g}"


def top1_line(title: str, metrics: dict[str, float]) -> str:
    """The headline of a classification."""
    return f"{title}: {metrics['top1']:.1f} % (chance {metrics['chance']:.1f} %)"
