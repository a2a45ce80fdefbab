"""Build the objects that a config describes: any `_target_`, and the parts of a training step."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from openslip.config.check import is_schedule, is_whole, lookup
from openslip.data.source import Source
from openslip.data.sources.subset import Subset
from openslip.data.view import View
from openslip.errors import UserError, first_line
from openslip.evaluation.evaluation import Evaluation
from openslip.objectives.objective import Objective
from openslip.text.tokenizer import Tokenizer
from openslip.training.towers import prepare_towers

SCHEDULE = {"every_n_epochs", "every_n_steps"}  # keys of an evaluation's config that are not constructor arguments


def build(config: Any, key: str = "", /, **extra: Any) -> Any:
    """Build the object whose `_target_` a config names.

    Args:
        config: settings with a `_target_`; with `_partial_`, a function is returned that builds the object.
        key: dotted key of these settings in the whole config, for error messages.
        extra: further keyword arguments of the constructor.

    Raises:
        UserError: the constructor raises any error; the message names the key, the class and the config's arguments.
    """
    if not isinstance(config, dict) or "_target_" not in config:
        raise UserError(f"{key}={config}: expected settings with a _target_")
    try:
        built = instantiate(config, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if "Error locating target" in str(error):
            cause = cause.__cause__ or cause
        nested = re.search(r"full_key: (\S+)", str(error))
        path = nested.group(1) if nested else ""
        inner = lookup(config, path)
        raise _error(cause, inner if isinstance(inner, dict) else config, f"{key}.{path}".strip(".")) from error
    return partial(_call, built, config, key) if isinstance(built, partial) else built


def _call(function: Callable[..., Any], config: dict[str, Any], key: str, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise _error(error, config, key) from error


def _error(error: BaseException, config: dict[str, Any], key: str) -> UserError:
    if isinstance(error, UserError):
        named = re.split("[=:]", str(error))[0] in config  # if the message begins with an argument, complete its key
        return type(error)(f"{key}.{error}") if key and named else error
    given = {name: value for name, value in config.items() if name not in ("_target_", "_partial_")}
    plain = [
        f"{name}={value}" for name, value in given.items() if not (isinstance(value, dict) and "_target_" in value)
    ]
    return UserError(f"{f'{key}: ' if key else ''}{config.get('_target_')}({', '.join(plain)}): {first_line(error)}")


@dataclass(frozen=True)
class Parts:
    """The parts of a training step that a config describes."""

    model: nn.Module
    objective: Objective
    views: dict[str, View]
    tokenizer: Tokenizer | None


def build_parts(config: dict[str, Any]) -> Parts:
    """Build the parts of a training step; `objective.prepare` is not called yet, and no data is read."""
    config = settled(config)
    model, objective = build(config["model"], "model"), build_objective(config["objective"])
    if (batch := config["global_batch_size"]) < objective.min_batch_size:
        raise UserError(
            f"global_batch_size={batch} leaves {type(objective).__name__} no negatives, so its loss would be 0: "
            f"use at least {objective.min_batch_size}, e.g. global_batch_size=64"
        )
    prepare_towers(model, config["towers"], initialised=config["init_from"]["checkpoint"] is not None)
    return Parts(
        model=model,
        objective=objective,
        views={name: build_view(view, name) for name, view in config["objective"]["views"].items()},
        tokenizer=build(config["tokenizer"], "tokenizer") if config["tokenizer"] else None,
    )


def build_view(config: Any, name: str) -> View:
    """Build a view; refuse one that makes token ids if the model has no text side and so no tokenizer."""
    if isinstance(config, dict) and "tokenizer" in config and not config["tokenizer"]:
        raise UserError(
            f"objective.views.{name} makes token ids, and tokenizer=null: this objective needs a model with a text "
            "tower, e.g. model=clip_tiny"
        )
    return build(config, f"objective.views.{name}")


def build_objective(config: dict[str, Any]) -> Objective:
    """Build the config's `objective`; a number may be given as a schedule, whose first value the constructor gets.

    Numbers of an objective inside the objective may follow a schedule too.

    Raises:
        UserError: the objective keeps no number of the name of one that is given as a schedule.
    """
    # The objective's class takes neither key: views are built by `build_parts`, and the model config has read `model`.
    arguments = {key: value for key, value in config.items() if key not in ("views", "model")}
    schedules = {key: build(value, f"objective.{key}") for key, value in scheduled(arguments)}
    objective = build(with_first_values(arguments), "objective")
    numbers = numbers_of(objective)
    for key in schedules:
        if key not in numbers:
            name = type(objective).__name__
            raise UserError(
                f"objective.{key}: {name} has no number {key} that can follow a schedule; use a number here, or a "
                f"schedule for one of: {', '.join(sorted(numbers))}"
            )
    objective.schedules = schedules
    return objective


def scheduled(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield dotted key and settings of each number that is given as a schedule."""
    for key, value in config.items():
        if is_schedule(value):
            yield prefix + key, value
        elif isinstance(value, dict):
            yield from scheduled(value, f"{prefix}{key}.")


def with_first_values(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with the first value of each schedule in place of its settings."""
    return {
        key: build(value)(0, 1)
        if is_schedule(value)
        else with_first_values(value)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }


def numbers_of(objective: Objective) -> set[str]:
    """Return the names of an objective's numbers that are read in every step, with those of objectives inside it."""
    return {
        f"{module}.{name}".removeprefix(".")
        for module, part in objective.named_modules()
        if isinstance(part, Objective)
        for name, value in vars(part).items()
        if isinstance(value, float)
    }


def settled(config: dict[str, Any]) -> dict[str, Any]:
    """Fill in a text tower's `vocab_size: auto` and `context_length: auto` from the tokenizer.

    Raises:
        UserError: the text tower's vocabulary or context is smaller than the tokenizer's.
    """
    text_tower = config["model"].get("text_tower")
    if not text_tower or not config["tokenizer"]:
        return config
    tokenizer = build(config["tokenizer"], "tokenizer")
    sizes = {"vocab_size": tokenizer.vocab_size, "context_length": tokenizer.context_length}
    filled = {key: sizes[key] if key in sizes and value == "auto" else value for key, value in text_tower.items()}
    for key, size in sizes.items():
        given = filled.get(key, size)
        if not is_whole(given) or given < size:
            raise UserError(f"model.text_tower.{key}={given}: the tokenizer needs {size}; set it to auto")
    return {**config, "model": {**config["model"], "text_tower": filled}}


def build_evaluations(config: dict[str, Any], num_samples: int | None = None) -> dict[str, Evaluation]:
    """Build the evaluations and set how often training runs each of them.

    Args:
        config: the config's `evaluation`.
        num_samples: number of samples that are used of each dataset; None uses all.
    """
    evaluations = {}
    for name, options in config.items():
        if not isinstance(options, dict):
            raise UserError(
                f"evaluation.{name}={options}: expected its settings; to remove it, write ~evaluation.{name}"
            )
        arguments = {key: value for key, value in options.items() if key not in SCHEDULE}
        parts = {} if num_samples is None else with_subsets(arguments, num_samples, f"evaluation.{name}")
        rest = {key: value for key, value in arguments.items() if key not in parts}
        evaluations[name] = build(rest, f"evaluation.{name}", **parts)
        for key in SCHEDULE & options.keys():
            if not is_whole(options[key]) or options[key] < 0:
                raise UserError(f"evaluation.{name}.{key}={options[key]}: expected a whole number; 0: at the end only")
            setattr(evaluations[name], key, options[key])
    return evaluations


def with_subsets(arguments: dict[str, Any], num_samples: int, key: str) -> dict[str, Any]:
    """Build the objects among an evaluation's arguments; sources keep at most `num_samples` of their samples."""
    parts = {}
    for name, value in arguments.items():
        if isinstance(value, dict) and "_target_" in value:
            part = build(value, f"{key}.{name}")
            is_too_large = isinstance(part, Source) and len(part) > num_samples
            parts[name] = Subset(part, num_samples) if is_too_large else part
    return parts
