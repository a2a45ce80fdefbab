"""Composes a run's config; Hydra is read by this folder and by commands alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from openslip.config.check import check_shapes
from openslip.config.defaults import composed, is_choice, plain
from openslip.config.evaluate import check_keys, spread_prompts
from openslip.config.explain import explain
from openslip.errors import UserError, first_line


def compose_config(
    name: str, arguments: list[str], values: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Compose a config: resolved, as plain dicts and lists, and the option chosen in each group.

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
    overrides = [parsed(override, folders) for override in overrides]
    try:
        config, choices = composed(name, overrides, folders)
        with open_dict(config):
            config.update(values or {})
            if name == "eval":
                check_keys(config, overrides)
                spread_prompts(config)
        check_shapes(name, overrides, folders, plain(config, resolve=False))
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise UserError(f"config key {missing[0]} has no value: add {missing[0]}=VALUE")
        return plain(config, resolve=True), choices
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, name)) from error


def parsed(override: str, folders: Sequence[Path]) -> str:
    """Make an override readable for Hydra: a value with braces, such as a shard pattern, gets quotes."""
    key, equals, text = override.partition("=")
    reason = "" if equals or override.startswith("~") else f"write {key}=VALUE"
    for candidate in () if reason else (override, f'{key}="{text}"') if "[" not in text else (override,):
        try:
            value = OverridesParser.create().parse_override(candidate).value()
        except HydraException as error:
            reason = first_line(error)
            continue
        if equals and is_choice(override, folders) and (value is None or isinstance(value, int | float)):
            raise UserError(f"{override}: expected the name of a file in configs/{key.partition('@')[0]}/")
        return candidate
    if "{}" in text:
        reason = f"in a list, text with {{}} needs quotes: '{key}=[\"a photo of a {{}}.\"]'"
    raise UserError(f"{override}: not of the form key=value ({reason})")
