"""Hydra's options that print a config instead of using it: `--cfg job`, `--resolve` and `--info defaults`."""

from collections.abc import Sequence

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from openslip.config.compose import checked_words, compose_unresolved
from openslip.config.explain import explain
from openslip.config.folder import config_folder
from openslip.config.search_path import search_path
from openslip.errors import UserError
from openslip.terminal import say

WORDS = {"--cfg": "job", "-c": "job", "--info": "defaults", "-i": "defaults"}


def main(name: str, arguments: Sequence[str]) -> None:
    """Print the config, or the list of its files, for the arguments of a command.

    Args:
        name: name of the root config, `train` or `eval`.
        arguments: words of the command line, one of them `--cfg` or `--info`.

    Raises:
        UserError: an option has another value, a sweep is asked for, or the config cannot be composed.
    """
    if swept := {"-m", "--multirun"} & set(arguments):
        raise UserError(
            f"{swept.pop()} trains several configs, and --cfg and --info print one: omit it and give each key one value"
        )
    asked, words = set[str](), []
    left = [part for word in arguments for part in parted(word)]
    while left:
        word = left.pop(0)
        if word not in WORDS:
            words.append(word)
        elif (value := left.pop(0) if left else "(no value)") == WORDS[word]:
            asked.add(value)
        else:
            raise UserError(f"{word} {value}: expected {word} {WORDS[word]}")
    resolve = "--resolve" in words
    words = [word for word in words if word != "--resolve"]
    try:
        if "defaults" in asked:
            say(*defaults(name, words))
        if "job" in asked:
            config, _ = compose_unresolved(name, words)
            say(*OmegaConf.to_yaml(config, resolve=resolve).splitlines())
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, name)) from error


def parted(word: str) -> list[str]:
    """Split `--cfg=job` into an option and its value."""
    option, equals, value = word.partition("=")
    return [option, value] if equals and option in WORDS else [word]


def defaults(name: str, arguments: Sequence[str]) -> list[str]:
    """Return one line per config file in the order in which they are merged: its name and where it is placed."""
    folders, overrides = checked_words(name, arguments)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        words = [*overrides, search_path(folders)]
        files = loader.compute_defaults_list(config_name=name, overrides=words, run_mode=RunMode.RUN).defaults
    own = [file for file in files if not (file.config_path or "").startswith("hydra/")]
    return [f"{file.config_path or '':45} {file.package or '(root)'}" for file in own]
