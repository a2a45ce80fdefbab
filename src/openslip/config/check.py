"""Check the values of a config before anything is built from them."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from openslip.config.defaults import default_config, is_choice
from openslip.config.replaced import PROFILER, REPLACED, STRATEGIES, refusal
from openslip.data.image.settings import SETTINGS
from openslip.errors import UserError

CHOICES = ("activation", "image_heads", "text_heads")  # what is chosen about a file of weights
NO_FSDP = "FSDP is not needed at ViT-L/16, whose weights, gradients and AdamW state take 7 GB: use trainer=ddp"


def is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number; `true`, which is 1 in Python, is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_shapes(name: str, overrides: Sequence[str], folders: Sequence[Path], config: dict[str, Any]) -> None:
    """Check that values on the command line have the type and length of the defaults that they replace.

    Args:
        name: name of the root config, `train` or `eval`.
        overrides: words of the command line.
        folders: folders of the user's own configs.
        config: the config composed with these overrides, unresolved.

    Raises:
        UserError: a value has the wrong type or length, e.g. a word for a number or two numbers for three.
    """
    choices = tuple(word for word in overrides if is_choice(word, folders))
    if len(choices) == len(overrides):
        return
    defaults = default_config(name, choices, tuple(folders))
    for word in overrides:
        key = word.partition("=")[0].lstrip("+")
        for mismatch in mismatches(key, lookup(config, key), lookup(defaults, key)):
            raise UserError(mismatch)
        steps, epochs = lookup(config, "optim.warmup_steps"), lookup(config, "optim.warmup_epochs")
        is_debug = any(choice.startswith("debug=") for choice in choices)  # its warm-up is part of the short run
        if key == "optim.warmup_epochs" and steps is not None and epochs is not None and not is_debug:
            raise UserError(f"{word}: optim.warmup_steps={steps} replaces it; add optim.warmup_steps=null")


def lookup(config: Any, key: str) -> Any:
    """Return the value of a dotted key, or None if there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def mismatches(key: str, value: Any, default: Any) -> Iterator[str]:
    """Yield an error for each value that differs in type or length from its default.

    Null, missing values and interpolations fit any default, and `auto` fits any number.

    Args:
        key: dotted key of the value.
        value: the value in the composed config.
        default: the value in the default config.
    """
    if any(x is None or (isinstance(x, str) and ("${" in x or x == "???")) for x in (value, default)):
        return
    if isinstance(default, dict) and isinstance(value, dict):
        for part in value:
            yield from mismatches(f"{key}.{part}", value[part], default.get(part))
        return
    if key.endswith((".classnames", ".templates")) and isinstance(value, str) and "{}" not in value:
        return  # in place of a list: a text file, or the name of a built-in list
    of_loss = key.startswith("objective.") and not key.startswith(("objective.views.", "objective.model."))
    if of_loss and is_number(default) and is_schedule(value):
        return
    example = f"e.g. {key}={default}"
    if isinstance(default, dict):
        first = next((name for name in default if name != "_target_"), "NAME")
        valid, expected = False, f"settings, each by its own key, such as {key}.{first}="
    elif isinstance(default, bool):
        valid, expected = isinstance(value, bool), "true or false"
    elif is_number(default):
        listed = key == "trainer.devices" and isinstance(value, list)
        valid, expected = is_number(value) or value == "auto" or listed, f"a number, {example}"
    elif isinstance(default, list):
        # A list of whole numbers or words may have any length; a list with a float (a pair, a colour) has a fixed one.
        fixed = any(isinstance(number, float) for number in default)
        valid = isinstance(value, list) and (len(value) == len(default) or not fixed)
        valid = valid and (not any(map(is_number, default)) or all(map(is_number, value)))
        expected = f"{len(default)} numbers, {example}" if fixed else f"a list, {example}"
    else:
        valid, expected = default == "auto" or not isinstance(value, dict), f"one value, {example}"
    if not valid:
        yield f"{key}={value}: expected {expected}"


def check_root_values(config: dict[str, Any]) -> None:
    """Check values of the root config and the training loop, wherever they were set.

    Raises:
        UserError: a value is invalid; the message names the key, the value and what was expected.
    """
    for key in ("trainer", "optim", "callbacks", "init_from", "towers", "watchdog", "plan"):
        if not isinstance(config[key], dict):
            raise UserError(f"{key}={config[key]}: expected settings, each by its own key; see configs/train.yaml")
    for key, value in config["trainer"].items():
        if key in REPLACED and value is not None and value is not False:
            raise UserError(f"trainer.{key}={value} {refusal(key)}")
    count, colour = "a whole number of at least 1", "three numbers, for red, green and blue"
    checks = {
        "global_batch_size": (is_count, f"{count}, e.g. global_batch_size=64"),
        "image_size": (is_count, f"{count}, e.g. image_size=224"),
        "micro_batch_size": (
            lambda x: x == "auto" or _or_null(is_count)(x),
            f"{count}, auto, or null for the whole batch",
        ),
        "seed": (lambda x: is_whole(x) and x >= 0, "a whole number of at least 0, e.g. seed=0"),
        "compile": (lambda x: x == "auto" or isinstance(x, bool), "auto, true or false"),
        "tf32": (lambda x: isinstance(x, bool), "true or false"),
        "resume": (lambda x: x in ("auto", "never", "replace"), "auto, never or replace"),
        "quiet": (lambda x: isinstance(x, bool), "true or false"),
        "evaluation_samples": (_or_null(is_count), f"{count}, or null"),
        "data.overfit_batches": (_or_null(is_count), f"{count}, or null"),
        "mean": (lambda x: _is_colour(x) and min(x) >= 0, f"{colour}, from 0 to 1 as pixels are"),
        "std": (lambda x: _is_colour(x) and min(x) > 0, f"{colour}, above 0 and up to 1 as pixels are"),
        "trainer.max_steps": (_or_null(is_count), f"{count}, or null"),
        "trainer.max_epochs": (_or_null(is_count), f"{count}, or null"),
        "trainer.num_nodes": (is_count, count),
        "trainer.strategy": (lambda x: "fsdp" not in str(x).lower(), f"ddp; {NO_FSDP}"),
        "trainer.profiler": (lambda x: not isinstance(x, str), f"settings: {PROFILER}"),
        "plan.utilisation": (lambda x: x == 1 or _up_to(1.0)(x), "a share of the peak, e.g. plan.utilisation=0.4"),
        "optim.layer_decay": (_or_null(_up_to(1.0)), "a number between 0 and 1, or null"),
        "optim.ema_decay": (_or_null(_up_to(1.0)), "a number between 0 and 1, or null"),
        "optim.clip_norm": (_or_null(_up_to(math.inf)), "a number between 0 and inf, or null"),
    }
    checkpoint = (_or_null(lambda x: isinstance(x, str)), "a run's folder or a checkpoint file, or null")
    checks["init_from.checkpoint"] = checkpoint
    checks["init_from.resize"] = (lambda x: isinstance(x, bool), "true or false")
    if config["init_from"]["resize"] is True:
        named = [config["init_from"]["checkpoint"], *(tower["weights"] for tower in config["towers"].values())]
        expected = "false where neither init_from.checkpoint nor towers.*.weights names weights"
        checks["init_from.resize"] = (lambda _: any(name is not None for name in named), expected)
    for part, key in (("init_from", "checkpoint"), *((f"towers.{kind}", "weights") for kind in config["towers"])):
        if lookup(config, f"{part}.{key}") is None:
            unused = (lambda x: x is None, f"null where {part}.{key} names no weights")
            checks |= {f"{part}.{choice}": unused for choice in CHOICES}
    for key, known in SETTINGS.items():
        if isinstance(lookup(config, f"data.decoder.{key}"), str):
            checks[f"data.decoder.{key}"] = (known.__contains__, f"{', '.join(known)} or null")
    checks |= _optim_checks(config)
    for kind in config["towers"]:
        tower = f"towers.{kind}"
        checks[f"{tower}.weights"] = checkpoint
        for key in ("locked", "gradient_checkpointing"):
            checks[f"{tower}.{key}"] = (lambda x: isinstance(x, bool), "true or false")
    checks["towers.image.patch_dropout"] = (
        lambda x: x == 0 or _up_to(1.0)(x),
        "a share from 0 to below 1, e.g. 0.5 as in FLIP",
    )
    if "metrics" in config["callbacks"]:
        peak = "the device's dense 16-bit peak in TFLOP/s, or null for the table in configs/devices"
        checks["callbacks.metrics.peak_tflops"] = (_or_null(_up_to(math.inf)), peak)
    for phase in config["watchdog"]:
        checks[f"watchdog.{phase}"] = (_up_to(math.inf), f"seconds, e.g. watchdog.{phase}=3600")
    for name, callback in config["callbacks"].items():
        for key in callback if isinstance(callback, dict) else ():
            if key.startswith("every_n_"):
                checks[f"callbacks.{name}.{key}"] = (is_count, count)
                if name == "save":
                    checks[f"callbacks.{name}.{key}"] = (_or_null(is_count), f"{count}, or null")
    minutes = "minutes, e.g. callbacks.save.every_minutes=15, or null"
    checks["callbacks.save.every_minutes"] = (_or_null(_up_to(math.inf)), minutes)
    for key, (valid, expected) in checks.items():
        value = lookup(config, key)
        for each in value.get("values", []) if is_schedule(value) else [value]:
            if not valid(each):
                raise UserError(f"{key}={each}: expected {expected}")
    if isinstance(strategy := config["trainer"]["strategy"], str) and strategy not in STRATEGIES:
        raise UserError(
            f"trainer.strategy={strategy}: expected {', '.join(STRATEGIES)}; trainer=ddp has the best settings"
        )


def _optim_checks(config: dict[str, Any]) -> dict[str, tuple[Callable[[Any], bool], str]]:
    """Return checks of settings whose wrong values would silently give a wrong result; absent keys count as null."""
    lr = lookup(config, "optim.lr")
    positive, least = (_up_to(math.inf), "a number above 0"), (_at_least_0, "a number of at least 0")
    up_to_peak = (lambda x: _at_least_0(x) and not (is_number(lr) and x > lr), f"a number from 0 to optim.lr={lr}")
    checks = {
        "optim.warmup_epochs": least,
        "optim.warmup_steps": (lambda x: is_whole(x) and x >= 0, "a whole number of at least 0, or null"),
        "optim.optimizer.lr": positive,
        "optim.optimizer.eps": least,
        "optim.optimizer.betas": (
            lambda x: not isinstance(x, list) or all(_at_least_0(beta) and beta < 1 for beta in x),
            "numbers from 0 to below 1, e.g. optim.optimizer.betas=[0.9, 0.98]",
        ),
        "optim.schedule.lr": positive,
        "optim.schedule.lr_start": up_to_peak,
        "optim.schedule.lr_end": up_to_peak,
        "objective.ssl_scale": least,
        "objective.ssl_temperature": positive,
        "objective.max_logit_scale": positive,
    }
    checks = {key: (_or_null(valid), expected) for key, (valid, expected) in checks.items()}
    if lookup(config, "optim.warmup_steps") is None:
        checks["optim.warmup_epochs"] = (_at_least_0, "a number of at least 0, or null with optim.warmup_steps=STEPS")
    return {"optim.lr": positive, "optim.weight_decay": least, **checks}


def is_schedule(value: Any) -> bool:
    """Tell whether a value is the settings of a schedule, which may stand for a number of an objective."""
    return isinstance(value, dict) and value.get("_target_") == "openslip.schedules.PiecewiseLinear"


def is_number(value: Any) -> bool:
    """Tell whether a value is an integer or a float; `true` and `false` are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Tell whether a value is a whole number of at least 1."""
    return is_whole(value) and value >= 1


def _up_to(high: float) -> Callable[[Any], bool]:
    return lambda value: is_number(value) and 0 < value < high


def _at_least_0(value: Any) -> bool:
    return is_number(value) and 0 <= value < math.inf


def _or_null(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or valid(value)


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(is_number(part) and part <= 1 for part in value)
