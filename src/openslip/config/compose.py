"""Composes a run's config; with the rest of this folder, all that knows of Hydra."""

from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from openslip.config.check import check_kinds
from openslip.config.defaults import composed
from openslip.config.explain import explain
from openslip.errors import UserError, first_line


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
    overrides = [parsed(override) for override in overrides]
    try:
        config = composed(name, overrides, folders)
        choices = {str(group): str(option) for group, option in config.hydra.runtime.choices.items()}
        with open_dict(config):
            del config["hydra"]
            config.update(values or {})
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise UserError(f"config key {missing[0]} has no value: add {missing[0]}=VALUE")
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(resolved, dict)
        resolved = {str(key): value for key, value in resolved.items()}
        check_kinds(name, overrides, folders, resolved)
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
