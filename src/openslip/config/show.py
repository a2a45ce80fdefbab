"""Hydra's options that print a config instead of using it: `--cfg job`, `--resolve` and `--info defaults`."""

from collections.abc import Sequence
from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from openslip.config.defaults import composed
from openslip.config.explain import explain
from openslip.config.folder import config_folder
from openslip.config.search_path import search_path
from openslip.config.words import readable, split_words
from openslip.errors import UserError
from openslip.terminal import say

WORDS = {"--cfg": ("job",), "-c": ("job",), "--info": ("defaults",), "-i": ("defaults",)}


def main(name: str, arguments: Sequence[str]) -> None:
    """Print the config, or the list of its files, for the arguments of a command.

    Args:
        name: name of the root config, `train` or `eval`.
        arguments: words of the command line, one of them `--cfg` or `--info`.

    Raises:
        UserError: an option has another value, or the config cannot be composed.
    """
    asked, words = set[str](), list(arguments)
    for option, values in WORDS.items():
        while option in words:
            place = words.index(option)
            value = words[place + 1] if place + 1 < len(words) else ""
            if value not in values:
                raise UserError(f"{option} {value or '(no value)'}: expected {option} {values[0]}")
            asked.add(value)
            del words[place : place + 2]
    resolve = "--resolve" in words
    folders, settings, others = split_words([word for word in words if word != "--resolve"])
    if others:
        raise UserError(f"unknown option {others[0]}: settings are written key=value, e.g. seed=1")
    overrides = [readable(word, folders) for word in settings]
    try:
        if "defaults" in asked:
            say(*defaults(name, overrides, folders))
        if "job" in asked:
            config, _ = composed(name, overrides, folders)
            say(*OmegaConf.to_yaml(config, resolve=resolve).splitlines())
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, name)) from error


def defaults(name: str, overrides: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return one line per config file in the order in which they are merged: its name and where it is placed."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        words = [*overrides, search_path(folders)]
        files = loader.compute_defaults_list(config_name=name, overrides=words, run_mode=RunMode.RUN).defaults
    own = [file for file in files if not (file.config_path or "").startswith("hydra/")]
    return [f"{file.config_path or '':45} {file.package or '(root)'}" for file in own]
