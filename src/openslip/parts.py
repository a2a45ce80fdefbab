"""What a training config describes, built: model, objective, and what their batches are made of."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from openslip.config import build
from openslip.data.views import View
from openslip.objectives.objective import Objective
from openslip.tokenizer import Tokenizer
from openslip.training.towers import prepare_towers


@dataclass(frozen=True)
class Parts:
    """The parts of a step."""

    model: nn.Module
    objective: Objective
    views: dict[str, View]
    tokenizer: Tokenizer | None


def build_parts(config: dict[str, Any]) -> Parts:
    """The parts; the objective is not yet set up for the model, and no data is looked at."""
    objective_config = {key: value for key, value in config["objective"].items() if key != "views"}
    model, objective = build(config["model"]), build(objective_config)
    prepare_towers(model, config["towers"])
    return Parts(
        model=model,
        objective=objective,
        views={name: build(view) for name, view in config["objective"]["views"].items()},
        tokenizer=build(config["tokenizer"]) if config["tokenizer"] else None,
    )
