"""Rules for `configs/eval.yaml` only: root keys apply to all evaluations, and settings of training are refused."""

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from openslip.config.defaults import default_config
from openslip.errors import UserError

OF_THE_CHECKPOINT = ("model", "tokenizer", "image_size", "mean", "std")  # settings that a checkpoint holds


def spread_prompts(config: Any) -> None:
    """Copy the root's `classnames` and `templates` to each evaluation that has these keys.

    Args:
        config: unresolved OmegaConf config, changed in place.

    Raises:
        UserError: a key is set at the root, but no chosen evaluation has it.
    """
    for key in ("classnames", "templates"):
        value = config.get(key)
        if value is None:
            continue
        # `key in options` would be false for a key with the missing value `???`.
        evaluations = [name for name, options in config.evaluation.items() if options and key in list(options)]
        if not evaluations:
            chosen = ", ".join(map(str, config.evaluation)) or "none"
            raise UserError(f"{key}={value}: no zero-shot evaluation is chosen ({chosen}): remove {key}")
        for name in evaluations:
            OmegaConf.update(config, f"evaluation.{name}.{key}", value, merge=False)


def check_keys(config: Any, overrides: Sequence[str]) -> None:
    """Refuse root keys that `openslip eval` would ignore.

    Args:
        config: the config composed with these overrides.
        overrides: words of the command line.

    Raises:
        UserError: a key is a setting of training, or was added on the command line but is unknown.
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
    """Return the error message for a root key that exists for training but not for evaluation."""
    message = f"config key {key} is a setting of training, which evaluations of a checkpoint do not have: remove it"
    if key.rpartition(".")[2] in OF_THE_CHECKPOINT:
        message += "; the checkpoint's own is used"
    return message
