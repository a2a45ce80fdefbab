"""Compose root configs with Hydra, with or without overrides."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from openslip.config.folder import config_folder
from openslip.config.search_path import search_path


def composed(name: str, overrides: Sequence[str], folders: Sequence[Path]) -> tuple[Any, dict[str, str]]:
    """Compose a root config as an unresolved OmegaConf config, and return the option chosen in each group.

    Args:
        name: name of the root config, `train` or `eval`.
        overrides: Hydra overrides.
        folders: folders of the user's own configs.
    """
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose(name, [*overrides, search_path(folders)], return_hydra_config=True)
    choices = {str(group): str(option) for group, option in config.hydra.runtime.choices.items()}
    with open_dict(config):
        del config["hydra"]
    return config, choices


def plain(config: Any, *, resolve: bool) -> dict[str, Any]:
    """Convert an OmegaConf config to plain dicts and lists."""
    return {str(key): value for key, value in OmegaConf.to_container(config, resolve=resolve).items()}  # pyright: ignore


@cache
def default_config(name: str, choices: tuple[str, ...] = (), folders: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Compose a root config without overrides, except those that choose a file of a group.

    Args:
        name: name of the root config, `train` or `eval`.
        choices: overrides that choose files of groups.
        folders: folders of the user's own configs.
    """
    config, _ = composed(name, choices, folders)
    try:
        return plain(config, resolve=True)
    except OmegaConfBaseException:  # the config refers to a value that only the user can give
        return plain(config, resolve=False)


def is_choice(override: str, folders: Sequence[Path]) -> bool:
    """Tell whether a word of the command line chooses a file of a group, or removes a key; it then sets no value."""
    key = override.partition("=")[0].lstrip("+")
    in_groups = any((folder / key).is_dir() for folder in (config_folder(), *folders))
    return in_groups or "/" in key or "@" in key or key.startswith("~")
