"""What a config describes, built: any `_target_`, and the parts of a training step."""

from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from openslip.config.explain import full_key
from openslip.data.image.crop import View
from openslip.errors import UserError, first_line
from openslip.inference.predict import load
from openslip.objectives.objective import Objective
from openslip.text.clip_bpe import Tokenizer
from openslip.training.towers import prepare_towers


def build(config: dict[str, Any], **extra: Any) -> Any:
    """The object whose `_target_` a config names; its mistakes name the key."""
    try:
        return instantiate(config, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"{config.get('_target_')}: {first_line(cause or error)}{full_key(error)}") from error


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


def load_tower_weights(model: nn.Module, options: dict[str, dict[str, Any]]) -> None:
    """Towers start as those of the checkpoints that the config's `towers` names. Zhai et al. 2021, arXiv:2111.07991.

    Raises:
        UserError: no such file, or its tower is of another shape.
    """
    for kind, wanted in options.items():
        path = wanted["weights"]
        if path is None:
            continue
        found = load(path).model
        there, here = (dict(each.named_children()).get(f"{kind}_tower") for each in (found, model))
        if there is None or here is None:
            which = f"{path} has" if there is None else "the model to be trained has"
            raise UserError(f"towers.{kind}.weights={path}: {which} no {kind} tower; set it to null")
        try:
            here.load_state_dict(there.state_dict())
        except RuntimeError as error:
            differences = str(error).splitlines()[1:]
            raise UserError(
                f"towers.{kind}.weights={path}: its {kind} tower is another one ({differences[0].strip()}"
                f"{f', and {len(differences) - 1} more' * (len(differences) > 1)}); take the config it was made with"
            ) from error
