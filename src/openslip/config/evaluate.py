"""What only `configs/eval.yaml` has: keys for all its evaluations, and no settings of training."""

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from openslip.config.defaults import default_config
from openslip.errors import UserError


def spread_prompts(config: Any) -> None:
    """Give each evaluation that has class names the root's `classnames`, and likewise its `templates`.

    Args:
        config: OmegaConf's, unresolved.

    Raises:
        UserError: one of them is set, and no chosen evaluation has such a key.
    """
    for key in ("classnames", "templates"):
        value = config.get(key)
        if value is None:
            continue
        # `key in options` is false for a key that still waits for its value.
        evaluations = [name for name, options in config.evaluation.items() if options and key in list(options)]
        if not evaluations:
            chosen = ", ".join(map(str, config.evaluation)) or "none"
            raise UserError(f"{key}={value}: no zero-shot evaluation is chosen ({chosen}): leave {key} out")
        for name in evaluations:
            OmegaConf.update(config, f"evaluation.{name}.{key}", value, merge=False)


def check_keys(config: Any, overrides: Sequence[str]) -> None:
    """Refuse what an evaluation would ignore.

    Args:
        config: composed with these overrides.
        overrides: words of the command line.

    Raises:
        UserError: a setting of training, or a root key that was added on the command line and that nothing reads.
    """
    added = [str(key) for key in config if key not in default_config("eval")]
    for key in added:
        if key in default_config("train"):
            raise UserError(of_training(key))
        if any(word.lstrip("+").partition("=")[0].split(".")[0] == key for word in overrides if word.startswith("+")):
            raise UserError(
                f"config key {key} is unknown and would be ignored; the known ones are in configs/eval.yaml"
            )


def of_training(key: str) -> str:
    """The error of a key that training has and an evaluation has not."""
    return (
        f"config key {key} is a setting of training: an evaluation takes model, tokenizer, image_size, mean and std "
        f"from its checkpoint; leave {key} out, or train with it"
    )
