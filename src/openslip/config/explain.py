"""Turn errors of Hydra into one line that names the key, the value and what to write instead."""

import difflib
import re
from collections.abc import Iterator
from typing import Any

from openslip.config.defaults import default_config
from openslip.config.evaluate import of_training
from openslip.config.replaced import MOVED, REPLACED, refusal
from openslip.errors import first_line


def explain(error: Exception, name: str) -> str:
    """Explain an error of Hydra in one line.

    Args:
        error: the error that Hydra or OmegaConf raised.
        name: name of the root config, `train` or `eval`.
    """
    message = str(error)
    unknown_option = re.search(r"Could not find '([^']+)/([^'/]+)'", message)
    if unknown_option:
        group, option = unknown_option.groups()
        options = re.findall(r"^\t(\S+)$", message, re.MULTILINE)
        near = difflib.get_close_matches(option, options, n=1)
        model = re.search(r"In 'model/([^']+)': ", message)
        if model and group in ("method", "size"):
            hint = f"did you mean model={model[1].replace(option, near[0])}? " if near else ""
            return f"model={model[1]} is unknown; {hint}{group} {option} is none of: {', '.join(options)}"
        hint = f"did you mean {group}={near[0]}? " if near else ""
        return f"{group}={option} is unknown; {hint}one of: {', '.join(options)}"
    missing_group = re.search(r"Could not override '([^']+)'", message)
    unknown_key = re.search(r"Key '([^']+)' is not in struct", message)
    if unknown_key or missing_group:
        path = re.search(r"full_key: (\S+)", message) or unknown_key or missing_group
        assert path
        key = path[1]
        group, _, argument = key.partition(".")
        if group == "trainer" and argument in REPLACED:
            return f"{key} {refusal(argument)}"
        if key in MOVED:
            return f"config key {key} has been replaced by {MOVED[key]}, for both towers"
        of_train = default_config("train").keys() - default_config("eval").keys()
        if name == "eval" and of_train & {key.split(".")[0], key.split(".")[-1]}:
            return of_training(key)
        known = dotted_keys(default_config(name))
        known = [other for other in known if not key.startswith(f"{other}.") and not other.endswith("_target_")]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see configs/ for the known ones"
        # An argument that a class takes may have no line in the config.
        return f"config key {key} is unknown; {hint}" + (f" (+{key}=VALUE adds a key)" if "." in key else "")
    if without_value := re.search(r"Missing mandatory value: (\S+)", message):
        return f"config key {without_value[1]} has no value: add {without_value[1]}=VALUE"
    unfit = re.search(r"Error merging override (\S+)", message)
    if unfit:
        return f"{unfit[1]}: expected settings, each by its own key; see configs/"
    return first_line(error)


def dotted_keys(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield every key of a config in dotted form, including keys of nested dicts."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted_keys(value, f"{prefix}{key}.")
