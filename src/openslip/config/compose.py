"""Composes a run's config and builds the objects it names; with the entry points, all that knows of Hydra."""

import difflib
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from openslip.errors import UserError
from openslip.numbers import is_number


def config_folder() -> Path:
    """`configs/` of the wheel, or of the clone."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "configs"


def compose_config(
    name: str, arguments: list[str], values: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The resolved config as plain dicts and lists, and the option chosen in each group.

    Args:
        name: of the root config, `train` or `eval`.
        arguments: Hydra overrides (`model=slip_vitb16 seed=1`); `--config-dir DIR` adds a folder of your own configs.
        values: root keys that something other than the command line decides.
    """
    folders, overrides = [], []
    words = iter(arguments)
    for word in words:
        if word == "--config-dir":
            folders.append(Path(next(words, "")).resolve())
        elif word.startswith("--config-dir="):
            folders.append(Path(word.partition("=")[2]).resolve())
        elif word.startswith("-"):
            raise UserError(f"unknown option {word}: settings are written key=value, e.g. seed=1")
        else:
            overrides.append(word)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder}: no such folder")
    if folders:
        overrides.append("hydra.searchpath=[" + ",".join(f"file://{folder}" for folder in folders) + "]")
    overrides = [parsed(override) for override in overrides]
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = compose(name, overrides, return_hydra_config=True)
        choices = {str(group): str(option) for group, option in config.hydra.runtime.choices.items()}
        with open_dict(config):
            del config["hydra"]
            config.update(values or {})
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise UserError(f"config key {missing[0]} has no value: add {missing[0]}=VALUE")
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(resolved, dict)
        resolved = {str(key): value for key, value in resolved.items()}
        check_kinds(name, overrides, resolved)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, name)) from error
    return resolved, choices


def parsed(override: str) -> str:
    """An override that Hydra can read: a value with braces, such as a shard pattern, gets its quotes here."""
    key, equals, value = override.partition("=")
    reason = "" if equals or override.startswith("~") else f"write {key}=VALUE"
    for candidate in () if reason else (override, f'{key}="{value}"') if "[" not in value else (override,):
        try:
            OverridesParser.create().parse_override(candidate)
        except HydraException as error:
            reason = first_line(error)
        else:
            return candidate
    raise UserError(f"{override}: not of the form key=value ({reason})")


def check_kinds(name: str, overrides: list[str], resolved: dict[str, Any]) -> None:
    """A word where the default is a number, or something else than true or false, is refused by its key.

    `auto` and null stand for a number in many places; whoever reads the value knows in which.
    """
    values = flatten(resolved)
    given = {key: values[key] for word in overrides if (key := word.partition("=")[0]) in values}
    groups = [word for word in overrides if word.partition("=")[0] not in given]
    if not any(isinstance(value, str | bool) and value != "auto" for value in given.values()):
        return
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        plain = OmegaConf.to_container(compose(name, groups), resolve=False)
    assert isinstance(plain, dict)
    defaults = flatten(plain)
    for key, value in given.items():
        default = defaults.get(key)
        if isinstance(default, bool) and not isinstance(value, bool):
            raise UserError(f"{key}={value}: expected true or false")
        if is_number(default) and not is_number(value) and value not in (None, "auto"):
            raise UserError(f"{key}={value}: expected a number, e.g. {key}={default}")


def build(config: dict[str, Any], **extra: Any) -> Any:
    """The object whose `_target_` a config names; its mistakes name the key."""
    try:
        return instantiate(config, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"{config.get('_target_')}: {first_line(cause or error)}{full_key(error)}") from error


def explain(error: Exception, name: str) -> str:
    """Hydra's finding as one line that names the key, the value and what to write instead."""
    message = str(error)
    unknown_option = re.search(r"Could not find '([^']+)/([^'/]+)'", message)
    if unknown_option:
        group, option = unknown_option.groups()
        options = re.findall(r"^\t(\S+)$", message, re.MULTILINE)
        near = difflib.get_close_matches(option, options, n=1)
        hint = f"did you mean {group}={near[0]}? " if near else ""
        return f"{group}={option} is unknown; {hint}one of: {', '.join(options)}"
    missing_group = re.search(r"Could not override '([^']+)'", message)
    unknown_key = re.search(r"Key '([^']+)' is not in struct", message)
    if unknown_key or missing_group:
        match = unknown_key or missing_group
        assert match
        path = re.search(r"full_key: (\S+)", message)
        key = path.group(1) if path else match.group(1)
        near = difflib.get_close_matches(key, known_keys(name), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see configs/ for the known ones"
        return f"config key {key} is unknown; {hint}"
    missing = re.search(r"Missing mandatory value: (\S+)", message)
    if missing:
        return f"config key {missing.group(1)} has no value: add {missing.group(1)}=VALUE"
    unfit = re.search(r"Error merging override (\S+)", message)
    if unfit:
        return f"{unfit.group(1)}: a group of settings stands there, and this value is none; see configs/ for its keys"
    return first_line(error)


def known_keys(name: str) -> list[str]:
    """Every dotted key of the default config, and every group."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        plain = OmegaConf.to_container(compose(name), resolve=False)
    assert isinstance(plain, dict)
    return [*flatten(plain), *map(str, plain)]


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def full_key(error: Exception) -> str:
    found = re.search(r"full_key: (\S+)", str(error))
    return f" (config key {found.group(1)})" if found else ""


def run_entry_point(main: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    """Runs an entry point: a mistake of the user is one line and its exit code, a traceback only with debug=true."""
    try:
        return main([word for word in arguments if word not in ("debug=true", "debug=false")]) or 0
    except UserError as error:
        if "debug=true" in arguments:
            traceback.print_exc()
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except Exception as error:
        if "debug=true" in arguments:
            traceback.print_exc()
            return 1
        sys.stderr.write(f"error: {type(error).__name__}: {first_line(error)} (debug=true shows the traceback)\n")
        return 1
