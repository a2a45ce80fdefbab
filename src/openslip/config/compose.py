"""Compose a run's config; only this folder and the commands use Hydra."""

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


def compose_config(
    name: str, arguments: list[str], values: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Compose a config; return it resolved, as plain dicts and lists, with the option chosen in each group.

    Args:
        name: name of the root config, `train` or `eval`.
        arguments: Hydra overrides (`model=slip_vitb16 seed=1`); `--config-dir DIR` adds a folder of your own configs.
        values: values of root keys that are set by the caller, not on the command line.
    """
    folders, settings, options = split_words(arguments)
    if options:
        example = f"{options[0][2:]}=VALUE" if options[0].startswith("--") else "seed=1"
        raise UserError(f"unknown option {options[0]}: settings are written key=value, e.g. {example}")
    for word in settings:
        if word.lstrip("+~").startswith(("hydra.", "hydra/")):
            raise UserError(
                f"{word}: a run does not use Hydra's folders and launchers; runs_dir=DIR and name=NAME place "
                "it, and openslip sweep takes hydra/launcher and hydra/sweeper"
            )
    remedy = "python train.py -m makes a run of each" if name == "train" else "give one"
    overrides = [readable(word, folders, remedy=remedy) for word in settings]
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
