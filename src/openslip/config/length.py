"""The length of a run in steps, and its learning rate schedule."""

from typing import Any

from openslip.config.build import build
from openslip.errors import UserError
from openslip.schedules import LearningRate


def planned_steps(settings: dict[str, Any], steps_per_epoch: int) -> int:
    """Return the run's length in steps: `trainer.max_steps` or `trainer.max_epochs`, whichever ends first.

    Args:
        settings: the config's `trainer`.
        steps_per_epoch: global batches per epoch.
    """
    max_steps, max_epochs = settings.get("max_steps"), settings.get("max_epochs")
    if max_steps is None and max_epochs is None:
        raise UserError("trainer.max_steps and trainer.max_epochs are both null: set one, e.g. trainer.max_epochs=25")
    return min(steps for steps in (max_steps, max_epochs and max_epochs * steps_per_epoch) if steps is not None)


def planned_schedule(config: dict[str, Any], steps_per_epoch: int) -> LearningRate:
    """Build the learning rate schedule for the run's length."""
    warmup_steps = planned_warm_up(config, steps_per_epoch)
    max_steps = planned_steps(config["trainer"], steps_per_epoch)
    return build(config["optim"]["schedule"], "optim.schedule", warmup_steps=warmup_steps, max_steps=max_steps)


def planned_warm_up(config: dict[str, Any], steps_per_epoch: int) -> int:
    """Return the length of the warm-up in steps: `optim.warmup_steps`, or if null, `optim.warmup_epochs`."""
    steps = config["optim"]["warmup_steps"]
    return round(config["optim"]["warmup_epochs"] * steps_per_epoch) if steps is None else steps


def warm_up_notes(config: dict[str, Any], steps_per_epoch: int, max_steps: int) -> list[str]:
    """Return a warning line if the run ends during its warm-up, else no line."""
    steps = planned_warm_up(config, steps_per_epoch)
    if steps <= max_steps:
        return []
    fits = max(1, max_steps // 10)
    return [f"warm-up is {steps} of {max_steps} steps; the peak rate is never reached: add optim.warmup_steps={fits}"]
