"""Whether the values of a config are of the right kind, before anything is built of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openslip.config.defaults import default_config, is_choice
from openslip.errors import UserError
from openslip.numbers import is_number

NO_FSDP = "FSDP is not needed at ViT-L/16, whose weights, gradients and AdamW state take 7 GB: use trainer=ddp"


def is_whole(value: Any) -> bool:
    """Whether this is a whole number as a person means it: for Python `true` is 1 as well."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_shapes(name: str, overrides: Sequence[str], folders: Sequence[Path], config: dict[str, Any]) -> None:
    """What the command line says has the shape of the default that it replaces.

    Args:
        name: the root config's.
        overrides: words of the command line.
        folders: of the user's own configs.
        config: composed with these overrides, unresolved.

    Raises:
        UserError: a word where the default is a number, a number for a list, two numbers for three, ...
    """
    choices = tuple(word for word in overrides if is_choice(word, folders))
    if len(choices) == len(overrides):
        return
    defaults = default_config(name, choices, tuple(folders))
    for word in overrides:
        key = word.partition("=")[0].lstrip("+")
        for mismatch in mismatches(key, lookup(config, key), lookup(defaults, key)):
            raise UserError(mismatch)


def lookup(config: Any, key: str) -> Any:
    """The value under a dotted key, or None."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def mismatches(key: str, value: Any, default: Any) -> Iterator[str]:
    """Where a value differs in shape from its default; null, `auto` and interpolations may stand for anything."""
    if any(x is None or (isinstance(x, str) and ("${" in x or x == "???")) for x in (value, default)):
        return
    if isinstance(default, dict) and isinstance(value, dict):
        for part in value:
            yield from mismatches(f"{key}.{part}", value[part], default.get(part))
        return
    said = f"{key}={value}: expected"
    if isinstance(default, dict):
        names = [name for name in default if name != "_target_"]
        yield f"{said} settings, each by its own key" + "".join(f", such as {key}.{name}=" for name in names[:1])
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            yield f"{said} true or false"
    elif is_number(default):
        if not is_number(value) and value != "auto" and not (key == "trainer.devices" and isinstance(value, list)):
            yield f"{said} a number, e.g. {key}={default}"
    elif isinstance(default, list):
        # A list of whole numbers or words names cases, as many as wanted; one of fractions is a pair, a colour, ...
        count = f"{len(default)} numbers" if any(isinstance(number, float) for number in default) else "a list"
        if (
            not isinstance(value, list)
            or (any(map(is_number, default)) and not all(map(is_number, value)))
            or (count != "a list" and len(value) != len(default))
        ):
            yield f"{said} {count}, e.g. {key}={default}"
    elif isinstance(value, dict) and default != "auto":
        yield f"{said} one value, e.g. {key}={default}"


def check_root_values(config: dict[str, Any]) -> None:
    """The root's values and those of the training loop, wherever they were written.

    Raises:
        UserError: names the key, its value and what was expected.
    """
    for key in ("trainer", "optim", "callbacks", "watchdog", "plan"):
        if not isinstance(config[key], dict):
            raise UserError(f"{key}={config[key]}: expected settings, each by its own key; see configs/train.yaml")
    for key, value, valid, expected in _root_values(config):
        if not valid:
            raise UserError(f"{key}={value}: {expected}")


def _root_values(config: dict[str, Any]) -> Iterator[tuple[str, Any, bool, str]]:
    trainer = config["trainer"]
    for key in ("global_batch_size", "image_size"):
        value = config[key]
        yield key, value, _is_count(value), f"expected a whole number of at least 1, e.g. {key}=64"
    value = config["micro_batch_size"]
    valid = value in (None, "auto") or _is_count(value)
    yield "micro_batch_size", value, valid, "expected a whole number of at least 1, auto, or null for the whole batch"
    value = config["seed"]
    yield "seed", value, is_whole(value) and value >= 0, "expected a whole number of at least 0, e.g. seed=0"
    yield "tf32", config["tf32"], isinstance(config["tf32"], bool), "expected true or false"
    yield "resume", config["resume"], config["resume"] in ("auto", "never"), "expected auto or never"
    for key in ("mean", "std"):
        value = config[key]
        valid = isinstance(value, list) and len(value) == 3 and all(map(is_number, value))
        yield key, value, valid, f"expected three numbers, for red, green and blue, e.g. {key}=[0.5, 0.5, 0.5]"
    for key in ("max_steps", "max_epochs"):
        value = trainer[key]
        yield (
            f"trainer.{key}",
            value,
            value is None or _is_count(value),
            "expected a whole number of at least 1, or null",
        )
    yield "trainer.strategy", trainer["strategy"], "fsdp" not in str(trainer["strategy"]).lower(), NO_FSDP
    for name, callback in config["callbacks"].items():
        for key, value in callback.items() if isinstance(callback, dict) else ():
            if key.startswith("every_n_"):
                yield f"callbacks.{name}.{key}", value, _is_count(value), "expected a whole number of at least 1"
    for phase, value in config["watchdog"].items():
        valid = is_number(value) and value > 0
        yield f"watchdog.{phase}", value, valid, f"expected seconds, e.g. watchdog.{phase}=3600"
    value = config["plan"]["utilisation"]
    valid = is_number(value) and 0 < value <= 1
    yield "plan.utilisation", value, valid, "expected a share of the peak, e.g. plan.utilisation=0.4"
    for key, high in (("layer_decay", 1), ("ema_decay", 1), ("clip_norm", float("inf"))):
        value = config["optim"][key]
        valid = value is None or (is_number(value) and 0 < value < high)
        yield f"optim.{key}", value, valid, f"expected a number between 0 and {high}, or null"


def _is_count(value: Any) -> bool:
    return is_whole(value) and value >= 1
