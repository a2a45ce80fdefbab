"""A run's identity: exactly the settings that affect the result of its training."""

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

# Format of config.yaml. Raise it, and extend `upgraded`, when a key that is not null by default joins the identity.
FORMAT = 4

# Dotted keys, each with all keys below it. Hardware and micro-batches are not included, because any split of the global
# batch gives the same update; nor `mode`, `views` and `ssl_head`, because the objective includes what it uses of them.
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
# These keys are part of a run's name, but a resumed run may find its data elsewhere: its checkpoint identifies the data
# by content.
PLACES = ("data.source*.shards", "data.source*.root")
LENGTH = ("trainer.max_steps", "trainer.max_epochs")


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that identify a run, by dotted key; OpenSLIP's classes count by name, not by module.

    Null values are omitted, so that adding a key that is null by default changes no identity.
    """
    return {
        key: value
        for key, value in flat(_with_class_names(without_secrets(config))).items()
        if value is not None and value != {} and _matches(key, INCLUDED) and not _matches(key, NOT_CONTENT)
    }


def digest(config: dict[str, Any]) -> str:
    """Return eight hex digits of the identity's hash, for the name of a run."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]


def differences(stored: dict[str, Any], given: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which two configs are different runs, with both values; ignore length and data paths."""
    first, second = identity(stored), identity(given)
    return {
        key: (first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key) and not _matches(key, (*PLACES, *LENGTH))
    }


def of_another_run(description: Any, folder: Path) -> str | None:
    """Describe the settings in which a checkpoint's config differs from the run in a folder; None if it may belong.

    The run may have become longer since the checkpoint was saved, but never shorter.

    Args:
        description: the run's config that the checkpoint holds; None in older checkpoints, which do not hold it.
        folder: `runs/NAME`; if its config cannot be read, every checkpoint in it is accepted.
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
    """Return `max_steps` and `max_epochs` of a run, without the ones that are null."""
    return {key.removeprefix("trainer."): value for key, value in identity(config).items() if key in LENGTH}


def write_config(config: dict[str, Any]) -> str:
    """Return the text of a run's config.yaml."""
    return yaml.safe_dump(with_format(config), sort_keys=False)


def with_format(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config as it is stored in files: with its format and without secrets."""
    return {"format": FORMAT, **without_secrets(config)}


def read_config(file: Path) -> dict[str, Any] | None:
    """Read a run's config.yaml and upgrade it to the current format; None if there is no file.

    Raises:
        UserError: the file cannot be read, or its format is newer than this version.
    """
    try:
        config = yaml.safe_load(regular_file(file).read_text())
        if (written := config.get("format", 1)) > FORMAT:
            raise UserError(f"{file} has format {written}, this version reads up to {FORMAT}: update openslip")
        return _of_present_format(config)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # an error of YAML has several lines
        raise UserError(f"{file} cannot be read ({reason}): restore it from a copy, or give another name=") from error


def _of_present_format(config: dict[str, Any]) -> dict[str, Any]:
    settings, written = {key: value for key, value in config.items() if key != "format"}, config.get("format", 1)
    settings = _upgraded_from_1(settings) if written < 2 else settings
    settings = _upgraded_from_2(settings) if written < 3 else settings
    return _upgraded_from_3(settings) if written < 4 else settings


def _upgraded_from_3(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a config of format 3: in LiT, captions of an image's own words were negatives."""
    objective = config["objective"]
    added = {"contained_caption": "negative"} if _class_name(objective) == "LiT" else {}
    return {**config, "objective": {**added, **objective}}


def _upgraded_from_2(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a config of format 2: CLIP had no `same_caption`, edits of captions no synonyms and all their kinds."""
    objective = config["objective"]
    added = {"same_caption": "negative"} if _class_name(objective) == "CLIP" else {}
    views = {name: _without_synonyms(view) for name, view in objective["views"].items()}
    return {**config, "objective": {**added, **objective, "views": views}}


def _without_synonyms(view: dict[str, Any]) -> dict[str, Any]:
    edits = view.get("augment")
    if not isinstance(edits, dict) or _class_name(edits) != "RandomEdits":
        return view
    return {**view, "augment": {"synonyms": 0.0, "thesaurus": None, "one_kind": False, **edits}}


def _upgraded_from_1(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a config of format 1, in which captions were no view, and views took mean and std from the root."""
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
    """Return the config for storing and showing: its URLs without user, password and query."""
    if isinstance(config, dict):
        return {key: without_secrets(value) for key, value in config.items()}
    if isinstance(config, list):
        return [without_secrets(value) for value in config]
    return shown(config) if isinstance(config, str) else config


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to dotted keys; a list or an empty dict counts as one value."""
    if not isinstance(config, dict) or not config:
        return {prefix.removesuffix("."): config} if prefix else {}
    return {key: value for name, part in config.items() for key, value in flat(part, f"{prefix}{name}.").items()}


def _with_class_names(config: Any) -> Any:
    """Remove the module from each `_target_` of OpenSLIP, since modules move; a user's classes keep their module."""
    if isinstance(config, dict):
        named = {key: _with_class_names(value) for key, value in config.items()}
        return named if "_target_" not in named else {**named, "_target_": _class_name(named)}
    return [_with_class_names(value) for value in config] if isinstance(config, list) else config


def _class_name(config: dict[str, Any]) -> str:
    target = str(config["_target_"])
    return target.rpartition(".")[2] if target.startswith("openslip.") else target


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) or fnmatchcase(key, f"{pattern}.*") for pattern in patterns)
