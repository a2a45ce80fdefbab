"""Parameter groups and learning-rate schedule of published SLIP: docs/NUMERICS.md#optimizer."""

import math
import re
from collections.abc import Iterable

from torch import nn

from openslip.errors import UserError
from openslip.schedules import LearningRate, warm_up


def param_groups(modules: Iterable[nn.Module], weight_decay: float, layer_decay: float | None = None) -> list[dict]:
    """Return AdamW's parameter groups: weight decay for tensors of two or more dimensions, not for biases and norms.

    Class tokens and positional embeddings have two or more dimensions and do decay, as published.

    Args:
        modules: the model and the objective; parameters that require no gradient are omitted.
        weight_decay: AdamW's weight decay for the tensors that decay.
        layer_decay: factor on the learning rate per block below a tower's top, stored in each group as `lr_scale`; None
            for the same learning rate everywhere, `lr_scale` 1.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for module in modules:
        scales = layer_scales(module, layer_decay) if layer_decay is not None else {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                key = (is_decayed(name, parameter.ndim), scales.get(name, 1.0))
                groups.setdefault(key, []).append(parameter)
    if layer_decay is not None and len(groups) == 2:
        raise UserError(f"optim.layer_decay={layer_decay}: no tower with blocks is trained; set it to null")
    return [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0, "lr_scale": scale}
        for (decayed, scale), parameters in groups.items()
    ]


def layer_scales(module: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return the layer-wise learning-rate factors of a model, by parameter name. Bao et al. 2021, arXiv:2106.08254.

    A tower is a submodule with `blocks`. Of its n blocks, the last has the factor d and the first d^n; the parameters
    before the blocks (patch, token, position and class embeddings) have d^(n + 1). Names that are not in the result
    (final norms, projections, heads) have the factor 1.

    Args:
        module: model or objective.
        layer_decay: the factor d.

    Raises:
        UserError: a trained tower has no blocks, or has them in several stages, so that a block's depth is not defined.
    """
    for name, tower in module.named_children():
        trained = [key for key, parameter in tower.named_parameters() if parameter.requires_grad]
        stacks = {match[1] for key in trained if (match := re.match(r"(.*?)blocks\.\d+\.", key))}
        in_one_row = len(stacks) == 1 and not any(re.search(r"\.\d+\.", stack) for stack in stacks)
        if name.endswith("_tower") and trained and not in_one_row:
            raise UserError(
                f"optim.layer_decay={layer_decay}: the layers of {name} are not one sequence of transformer blocks, so "
                "their depth is not known; set it to null"
            )
    names = [name for name, _ in module.named_parameters()]
    blocks = [match for match in (re.match(r"(.*?)blocks\.(\d+)\.", name) for name in names) if match]
    depths: dict[str, int] = {}
    for match in blocks:
        depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    scales = {match.string: layer_decay ** (depths[match[1]] - int(match[2])) for match in blocks}
    for tower, depth in depths.items():
        first = names.index(next(match.string for match in blocks if match[1] == tower))
        for name in names[:first]:
            if name.startswith(tower):
                scales[name] = layer_decay ** (depth + 1)
    return scales


def is_decayed(name: str, ndim: int) -> bool:
    """Whether a parameter decays, as published: two or more dimensions, and no `bias`, `ln` or `bn` in its name."""
    return ndim >= 2 and not any(part in name for part in ("bias", "ln", "bn"))


class WarmupCosine(LearningRate):
    """Learning rate as a function of the step: linear warm-up, then half a cosine.

    Args:
        lr_start: learning rate at step 0.
        lr: learning rate at the last warm-up step, and again at the step after it, as in the published table.
        lr_end: limit of the cosine, which would be reached one step after the last one.
        warmup_steps: length of the warm-up in steps.
        max_steps: length of the run in steps; beyond it the learning rate stays at its last value.
    """

    def __init__(self, *, lr_start: float, lr: float, lr_end: float, warmup_steps: int, max_steps: int) -> None:
        self.lr_start = lr_start
        self.lr = lr
        self.lr_end = lr_end
        self.warmup_steps = warmup_steps
        self.max_steps = max_steps

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return warm_up(step, self.lr_start, self.lr, self.warmup_steps)
        step = min(step, self.max_steps - 1)
        progress = (step - self.warmup_steps) / max(self.max_steps - self.warmup_steps, 1)
        return self.lr_end + 0.5 * (self.lr - self.lr_end) * (1 + math.cos(math.pi * progress))
