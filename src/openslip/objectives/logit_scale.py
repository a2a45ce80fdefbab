"""Limits of the temperature as in DeCLIP's published code (utils/grad_clip.py, model/declip.py)."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from openslip.errors import UserError
from openslip.models.dual_encoder import DualEncoder


class LogitScaleLimits:
    """Keeps `logit_scale`, a natural logarithm, in a range.

    Args:
        bounds: smallest and largest value of `logit_scale`.
        largest_factor: largest exp(logit_scale) in the loss; None for no limit.
        published: whether `logit_scale` is limited as published: docs/NUMERICS.md#declip. If true, it is clamped to
            `bounds` in the forward pass, right after exp(logit_scale) is computed, and again after the optimizer's
            step. The factor is clamped to `largest_factor`, but its gradient is that of exp(logit_scale). If false,
            `logit_scale` is clamped after the step only, to `bounds` and to log(largest_factor) at most.

    Raises:
        UserError: `bounds` are not two ascending numbers, or `largest_factor` is below exp(bounds[0]).
    """

    def __init__(self, bounds: Sequence[float], largest_factor: float | None, *, published: bool) -> None:
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise UserError(f"logit_scale_bounds={list(bounds)}: expected two ascending numbers, such as [3, 6]")
        if largest_factor is not None and not largest_factor >= math.exp(bounds[0]):
            raise UserError(
                f"largest_factor={largest_factor}: expected at least exp(logit_scale_bounds[0]) = "
                f"{math.exp(bounds[0]):.4g} with logit_scale_bounds={list(bounds)}, such as 100; null sets no limit"
            )
        self.lower, self.upper = bounds
        self.largest_factor = largest_factor
        self.published = published

    def factor(self, model: DualEncoder) -> Float[Tensor, ""]:
        """Return the factor on the cosines in this step's loss."""
        factor = model.logit_scale.exp()
        if self.published:
            with torch.no_grad():  # after exp: its derivative uses its output before the clamp
                model.logit_scale.clamp_(self.lower, self.upper)
        if self.published and self.largest_factor is not None:
            return factor + (factor.clamp(max=self.largest_factor) - factor).detach()
        return factor

    @torch.no_grad()
    def after_step(self, model: DualEncoder) -> None:
        """Limit `logit_scale` after the optimizer's step."""
        model.logit_scale.clamp_(self.lower, self.upper)
        if not self.published and self.largest_factor is not None:
            model.logit_scale.clamp_(max=math.log(self.largest_factor))
