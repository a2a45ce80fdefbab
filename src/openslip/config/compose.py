"""Compose a run's config; only this folder and the commands use Hydra."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from openslip.config.check import check_shapes
from openslip.config.defaults import composed, plain
from openslip.config.evaluate import check_keys, spread_prompts
from openslip.config.explain import explain
from openslip.config.words import readable, split_words
from openslip.errors import UserError

OF_HYDRA = re.compile(r"[+~]*hydra(?:[./@=]|$)")


def compose_config(
    name: str, arguments: list[str], values: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Compose a config; return it resolved, as plain dicts and lists, with the option chosen in each group.

    Args:
        name: name of the root config, `train` or `eval`.
        arguments: Hydra overrides (`model=slip_vitb16 seed=1`); `--config-dir DIR` adds a folder of your own configs.
        values: values of root keys that are set by the caller, not on the command line.
    """
    config, choices = compose_unresolved(name, arguments, values)
    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise UserError(f"config key {missing[0]} has no value: add {missing[0]}=VALUE")
        return plain(config, resolve=True), choices
    except OmegaConfBaseException as error:
        raise UserError(explain(error, name)) from error


def compose_unresolved(
    name: str, arguments: Sequence[str], values: dict[str, Any] | None = None
) -> tuple[Any, dict[str, str]]:
    """Compose and check a config as `compose_config` does; return it as OmegaConf's, before values are resolved."""
    folders, overrides = checked_words(name, arguments)
    try:
        config, choices = composed(name, overrides, folders)
        with open_dict(config):
            config.update(values or {})
            if name == "eval":
                check_keys(config, overrides)
                spread_prompts(config)
        check_shapes(name, overrides, folders, plain(config, resolve=False))
        return config, choices
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, name)) from error


def checked_words(name: str, arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split a command line into the folders of the user's configs and overrides that Hydra reads as they are meant.

    Raises:
        UserError: a word is no setting, or a setting that one run would ignore.
    """
    folders, settings, options = split_words(arguments)
    if options:
        example = f"{options[0][2:]}=VALUE" if options[0].startswith("--") else "seed=1"
        raise UserError(f"unknown option {options[0]}: settings are written key=value, e.g. {example}")
    for word in settings:
        if OF_HYDRA.match(word):
            raise UserError(
                f"{word}: Hydra's own settings have no effect here; runs_dir=DIR and name=NAME place a run, "
                "output=FILE an evaluation, --config-dir DIR adds configs, openslip sweep takes hydra/launcher"
            )
    remedy = "python train.py -m makes a run of each" if name == "train" else "give one"
    return folders, [readable(word, folders, remedy=remedy) for word in settings]
