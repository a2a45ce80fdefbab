"""Parameter groups and the learning rate as published SLIP: docs/NUMERICS.md#optimizer."""

import math
from collections.abc import Iterable

from torch import nn


def param_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict]:
    """Two groups: matrices decay; vectors, scalars and whatever is named a bias or a norm do not.

    Class tokens and positional embeddings have two dimensions or more and do decay, as published.
    """
    decayed, undecayed = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (decayed if is_decayed(name, parameter.ndim) else undecayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]


def is_decayed(name: str, ndim: int) -> bool:
    """The published rule: at least two dimensions, and no `bias`, `ln` or `bn` in the name."""
    return ndim >= 2 and not any(part in name for part in ("bias", "ln", "bn"))


class WarmupCosine:
    """Learning rate as a closed form of the step: a straight line up, then half a cosine down.

    Args:
        lr_start: at step 0.
        lr: at the last warm-up step and once more at the step after it, as the published table.
        lr_end: what the cosine tends to; the last step is one short of it.
        warmup_steps: length of the line.
        total_steps: length of the run; the rate stays at its last value beyond it.
    """

    def __init__(self, *, lr_start: float, lr: float, lr_end: float, warmup_steps: int, total_steps: int) -> None:
        self.lr_start = lr_start
        self.lr = lr
        self.lr_end = lr_end
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.lr_start + (self.lr - self.lr_start) * step / max(self.warmup_steps - 1, 1)
        step = min(step, self.total_steps - 1)
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return self.lr_end + 0.5 * (self.lr - self.lr_end) * (1 + math.cos(math.pi * progress))
