"""What a config describes, built: any `_target_`, and the parts of a training step."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from openslip.config.explain import full_key
from openslip.data.view import View
from openslip.errors import UserError, first_line
from openslip.evaluation.evaluation import Evaluation
from openslip.inference.load import load
from openslip.objectives.objective import Objective
from openslip.text.tokenizer import Tokenizer
from openslip.training.towers import prepare_towers

SCHEDULE = ("every_n_epochs", "every_n_steps")  # keys of an evaluation's config that are no arguments


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
    config = settled(config)
    objective = config["objective"]
    arguments = {key: value for key, value in objective.items() if key not in ("views", "model")}
    model = build(config["model"])
    parts = Parts(
        model=model,
        objective=build(arguments),
        views={name: build(view) for name, view in objective["views"].items()},
        tokenizer=build(config["tokenizer"]) if config["tokenizer"] else None,
    )
    prepare_towers(model, config["towers"])
    return parts


def settled(config: dict[str, Any]) -> dict[str, Any]:
    """The config with a text tower's `vocab_size: auto` and `context_length: auto` filled in from the tokenizer.

    Raises:
        UserError: the text tower has room for fewer ids than the tokenizer makes.
    """
    text_tower = config["model"].get("text_tower")
    if not text_tower or not config["tokenizer"]:
        return config
    tokenizer = build(config["tokenizer"])
    sizes = {"vocab_size": tokenizer.vocab_size, "context_length": tokenizer.context_length}
    filled = {key: sizes[key] if key in sizes and value == "auto" else value for key, value in text_tower.items()}
    for key, size in sizes.items():
        if filled.get(key, size) < size:
            raise UserError(f"model.text_tower.{key}={filled[key]}: the tokenizer needs {size}; set it to auto")
    return {**config, "model": {**config["model"], "text_tower": filled}}


def build_evaluations(config: dict[str, Any]) -> dict[str, Evaluation]:
    """Evaluations by name, each with the schedule of its config."""
    evaluations = {}
    for name, described in config.items():
        schedule = {key: described[key] for key in SCHEDULE if key in described}
        evaluations[name] = build({key: value for key, value in described.items() if key not in SCHEDULE})
        for key, value in schedule.items():
            setattr(evaluations[name], key, value)
    return evaluations


def load_tower_weights(model: nn.Module, options: dict[str, dict[str, Any]], allow: Collection[str] = ()) -> None:
    """Towers start as those of the checkpoints that the config's `towers` names. Zhai et al. 2021, arXiv:2111.07991.

    Args:
        model: to be trained.
        options: the config's `towers`.
        allow: classes of your own that those checkpoints may name.

    Raises:
        UserError: no such file, or its tower is of another shape.
    """
    for kind, wanted in options.items():
        path = wanted["weights"]
        if path is None:
            continue
        loaded = load(path, allow=allow).model
        there, here = (dict(each.named_children()).get(f"{kind}_tower") for each in (loaded, model))
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
