"""A run's identity: the settings that change the numbers of its training, and no others."""

import hashlib
import json
import reprlib
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from openslip.data.remote.address import shown
from openslip.errors import UserError
from openslip.regular_file import regular_file

FORMAT = 2  # of config.yaml; raise it, and extend `upgraded`, when a key that is not null by default joins the identity

# Dotted keys, each with all below it. Hardware and micro-batches are not here because any split of the global batch
# makes the same update; `mode`, `views` and `ssl_head` because what is used of them stands in the objective.
INCLUDED = (
    *("model", "objective", "tokenizer", "optim", "data", "init_from.checkpoint"),
    *("seed", "global_batch_size", "image_size", "mean", "std", "tf32"),
    *("towers.*.weights", "towers.*.locked", "towers.*.patch_dropout"),
    *("trainer.precision", "trainer.max_steps", "trainer.max_epochs"),
)
NOT_CONTENT = (
    *("data.source*.cache", "data*.num_workers", "data*.prefetch_gb", "data.source*.expected_samples"),
    "data.bad_sample_budget",
)
# They name a run, but a resumed one may find its data elsewhere: its checkpoint knows the data by its content.
PLACES = ("data.source*.shards", "data.source*.root")
LENGTH = ("trainer.max_steps", "trainer.max_epochs")


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that make a run this run, by dotted key; OpenSLIP's classes count by name, wherever they lie.

    Null is left out, so that a new key that is off changes no identity.
    """
    return {
        key: value
        for key, value in flat(_with_class_names(without_secrets(config))).items()
        if value is not None and value != {} and _matches(key, INCLUDED) and not _matches(key, NOT_CONTENT)
    }


def digest(config: dict[str, Any]) -> str:
    """Eight hex digits of the identity, for the name of a run."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]


def differences(stored: dict[str, Any], given: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configs are not the same run, with both values; length and places of data aside."""
    first, second = identity(stored), identity(given)
    return {
        key: (first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key) and not _matches(key, (*PLACES, *LENGTH))
    }


def of_another_run(description: Any, folder: Path) -> str | None:
    """The settings in which a checkpoint's config is not of the run in the folder; None where it may be that run.

    A run may have become longer since, never shorter.

    Args:
        description: what the checkpoint keeps of `read_config`, None in those that were saved before it did.
        folder: `runs/NAME`; without a config that can be read everything in it is its own.
    """
    given = None
    with suppress(UserError):
        given = read_config(folder / "config.yaml")
    if description is None or given is None:
        return None
    try:
        stored = _of_present_format(description)
        changed, now = differences(stored, given), length(given)
        longer = {
            f"trainer.{key}": (steps, now[key])
            for key, steps in length(stored).items()
            if key in now and steps > now[key]
        }
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return "the config in it cannot be read"
    texts = [
        f"{key}: {reprlib.repr(old)} in it, {reprlib.repr(new)} in the run"
        for key, (old, new) in (changed | longer).items()
    ]
    return "; ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "") or None


def length(config: dict[str, Any]) -> dict[str, int]:
    """`max_steps` and `max_epochs` of a run, as far as they are set."""
    return {key.removeprefix("trainer."): value for key, value in identity(config).items() if key in LENGTH}


def write_config(config: dict[str, Any]) -> str:
    """The text of a run's config.yaml."""
    return yaml.safe_dump(with_format(config), sort_keys=False)


def with_format(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config as it is kept in files."""
    return {"format": FORMAT, **without_secrets(config)}


def read_config(file: Path) -> dict[str, Any] | None:
    """The config in a run's config.yaml as the present format has it, or None where there is no file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        config = yaml.safe_load(regular_file(file).read_text())
        if (written := config.get("format", 1)) > FORMAT:
            raise UserError(f"{file} has format {written}, this version reads up to {FORMAT}: update openslip")
        return _of_present_format(config)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it from a copy, or give another name=") from error


def _of_present_format(config: dict[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in config.items() if key != "format"}
    return settings if config.get("format", 1) >= FORMAT else upgraded(settings)


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """A config of format 1 in the present format: captions were no view, views took mean and std from the root."""
    tokenizer, views = config["tokenizer"], dict(config["objective"]["views"])
    for name, view in views.items():
        if _class_name(view) == "View":
            views[name] = {**view, "_target_": "RandomResizedCrop", "mean": config["mean"], "std": config["std"]}
    if tokenizer and _class_name(tokenizer) == "Tokenizer":
        tokenizer = {**tokenizer, "_target_": "ClipBpe", "mask_token": False}
    if tokenizer:
        views["text"] = {"_target_": "Caption", "tokenizer": tokenizer, "augment": None}
    return {**config, "tokenizer": tokenizer, "objective": {**config["objective"], "views": views}}


def without_secrets(config: Any) -> Any:
    """The config as it may be stored and shown: addresses without user, password and query."""
    if isinstance(config, dict):
        return {key: without_secrets(value) for key, value in config.items()}
    if isinstance(config, list):
        return [without_secrets(value) for value in config]
    return shown(config) if isinstance(config, str) else config


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to dotted keys; a list counts as one value, and so does an empty dict."""
    if not isinstance(config, dict) or not config:
        return {prefix.removesuffix("."): config} if prefix else {}
    return {key: value for name, part in config.items() for key, value in flat(part, f"{prefix}{name}.").items()}


def _with_class_names(config: Any) -> Any:
    """Each `_target_` of OpenSLIP without its module, since modules move; two of a user's may share a class name."""
    if isinstance(config, dict):
        named = {key: _with_class_names(value) for key, value in config.items()}
        return named if "_target_" not in named else {**named, "_target_": _class_name(named)}
    return [_with_class_names(value) for value in config] if isinstance(config, list) else config


def _class_name(config: dict[str, Any]) -> str:
    target = str(config["_target_"])
    return target.rpartition(".")[2] if target.startswith("openslip.") else target


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) or fnmatchcase(key, f"{pattern}.*") for pattern in patterns)
