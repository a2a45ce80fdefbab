"""Whether the values of a config are of the right kind, before anything is built of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openslip.config.defaults import default_values, flatten
from openslip.errors import UserError
from openslip.numbers import is_number, is_whole

NO_FSDP = "FSDP is not needed at ViT-L/16, whose weights, gradients and AdamW state take 7 GB: use trainer=ddp"


def check_kinds(name: str, overrides: list[str], folders: Sequence[Path], resolved: dict[str, Any]) -> None:
    """A word where the default is a number, or something else than true or false, is refused by its key.

    `auto` and null stand for a number in many places; whoever reads the value knows in which.
    """
    values = flatten(resolved)
    given = {key: values[key] for word in overrides if (key := word.partition("=")[0]) in values}
    groups = [word for word in overrides if word.partition("=")[0] not in given]
    if not any(isinstance(value, str | bool) and value != "auto" for value in given.values()):
        return
    defaults = default_values(name, groups, folders)
    for key, value in given.items():
        default = defaults.get(key)
        if isinstance(default, bool) and not isinstance(value, bool):
            raise UserError(f"{key}={value}: expected true or false")
        if is_number(default) and not is_number(value) and value not in (None, "auto"):
            raise UserError(f"{key}={value}: expected a number, e.g. {key}={default}")


def check_root_values(config: dict[str, Any]) -> None:
    """The root's plain values, before anything is built from them."""
    for key in ("global_batch_size", "image_size"):
        if not is_whole(config[key]) or config[key] < 1:
            raise UserError(f"{key}={config[key]}: expected a whole number of at least 1, e.g. {key}=64")
    micro = config["micro_batch_size"]
    if micro not in (None, "auto") and (not is_whole(micro) or micro < 1):
        raise UserError(f"micro_batch_size={micro}: expected a whole number of at least 1, auto, or null for one slice")
    if not isinstance(config["tf32"], bool):
        raise UserError(f"tf32={config['tf32']}: expected true or false")
    if not is_whole(config["seed"]) or config["seed"] < 0:
        raise UserError(f"seed={config['seed']}: expected a whole number of at least 0, e.g. seed=0")
    trainer = config["trainer"]
    for key, value in (("max_steps", trainer["max_steps"]), ("max_epochs", trainer["max_epochs"])):
        if value is not None and (not is_whole(value) or value < 1):
            raise UserError(f"trainer.{key}={value}: expected a whole number of at least 1, or null")
    for name, callback in config["callbacks"].items():
        for key, value in callback.items():
            if key.startswith("every_n_") and (not is_whole(value) or value < 1):
                raise UserError(f"callbacks.{name}.{key}={value}: expected a whole number of at least 1")
    for phase, seconds in config["watchdog"].items():
        if not is_number(seconds) or seconds <= 0:
            raise UserError(f"watchdog.{phase}={seconds}: expected seconds, e.g. watchdog.{phase}=3600")
    share = config["plan"]["utilisation"]
    if not is_number(share) or not 0 < share <= 1:
        raise UserError(f"plan.utilisation={share}: expected a share of the peak, e.g. plan.utilisation=0.4")
    if "fsdp" in str(trainer["strategy"]).lower():
        raise UserError(f"trainer.strategy={trainer['strategy']}: {NO_FSDP}")
    optim = config["optim"]
    for key, low, high in (("layer_decay", 0, 1), ("ema_decay", 0, 1), ("clip_norm", 0, float("inf"))):
        value = optim[key]
        if value is not None and (not is_number(value) or not low < value < high):
            raise UserError(f"optim.{key}={value}: expected a number between {low} and {high}, or null")
    if config["resume"] not in ("auto", "never"):
        raise UserError(f"resume={config['resume']}: expected auto or never")
