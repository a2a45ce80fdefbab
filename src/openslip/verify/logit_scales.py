"""Compares the limits of the temperature with recordings of DeCLIP's repository: `logit_scale.json`."""

import copy
import math
from pathlib import Path
from typing import Any

import torch

from openslip.objectives.declip import DeCLIP
from openslip.verify.declip_steps import Recorded, repeat_declip
from openslip.verify.deviation import Part, Row, worst
from openslip.verify.files import read_arrays, read_json

LOGIT_SCALES = "logit_scale.json"
FEATURES = "declip_one_rank.npz"  # its inputs are those of the recorded steps
TOLERANCE = 1e-7  # docs/NUMERICS.md#equal


def logit_scale_rows(folder: Path) -> list[Row]:
    """Return a row for each recorded rule; rules that are no range of the parameter are named and not compared."""
    recorded = Recorded(read_arrays(folder / FEATURES), read_json(folder / "meta.json")["weights"]["declip"])
    parts: dict[str, list[Part]] = {}
    for run in read_json(folder / LOGIT_SCALES)["runs"]:
        rule = run["grad_clip"]
        bounds = bounds_of(rule)
        parts.setdefault(rule["type"], []).extend(run_parts(recorded, run, bounds) if bounds else [])
    return [
        worst(f"logit scale: {rule}", compared) if compared else Row.skipped(f"logit scale: {rule}", "no rule of ours")
        for rule, compared in parts.items()
    ]


def bounds_of(rule: dict[str, Any]) -> tuple[float, float] | None:
    """Return the range in which a published rule keeps the parameter; None if the rule is no range."""
    if rule["type"] == "none":
        return -math.inf, math.inf
    if rule["type"] in ("logit_scale_param_value", "logit_scale_param_abs_min"):
        return rule["value"], rule.get("max_value", math.inf)
    return None


def run_parts(recorded: Recorded, run: dict[str, Any], bounds: tuple[float, float]) -> list[Part]:
    """Repeat the recorded gradient descent on the logit scale alone, with the CLIP term of four pairs as the loss."""
    repeated = repeat_declip(recorded, bounds)
    objective, scale = repeated.objective, repeated.model.logit_scale
    assert isinstance(objective, DeCLIP)
    with torch.no_grad():
        scale.fill_(run["steps"][0]["parameter_at_forward"])
    parts = []
    for step, expected in enumerate(run["steps"]):
        values = {"parameter_at_forward": scale.item()}
        features = repeated.features(recorded.given(step))
        values["scale_in_logits"] = objective.limits.factor(copy.deepcopy(repeated.model)).item()
        terms = objective.terms(repeated.model, features)
        terms["clip_loss"].backward()
        assert scale.grad is not None
        values |= {"parameter_before_update": scale.item(), "grad_at_update": scale.grad.item()}
        with torch.no_grad():
            scale -= run["lr"] * scale.grad
        scale.grad = None
        objective.after_step(repeated.model)
        values["parameter_after_step"] = scale.item()
        for name, value in values.items():
            label = f"{name} at step {step} from {run['initial']}"
            parts.append(Part(label, abs(value - expected[name]) / (abs(expected[name]) or 1.0), TOLERANCE))
    return parts
