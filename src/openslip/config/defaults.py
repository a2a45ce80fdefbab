"""A root config as Hydra composes it, and what it says before anything is overridden."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from openslip.config.search_path import config_folder, search_path


def composed(name: str, overrides: list[str], folders: Sequence[Path] = ()) -> Any:
    """A root config as OmegaConf's, unresolved, with Hydra's own settings under `hydra`; `folders` hold the user's."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose(name, [*overrides, search_path(folders)], return_hydra_config=True)


def default_values(name: str, overrides: list[str], folders: Sequence[Path] = ()) -> dict[str, Any]:
    """Every dotted key of a root config with its unresolved value."""
    config = OmegaConf.to_container(composed(name, overrides, folders), resolve=False)
    assert isinstance(config, dict)
    return flatten({key: value for key, value in config.items() if key != "hydra"})


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
