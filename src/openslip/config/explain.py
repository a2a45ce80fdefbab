"""Errors of Hydra and of constructors as one line that names the key, the value and what to write instead."""

import difflib
import re

from openslip.config.defaults import default_values
from openslip.errors import first_line


def explain(error: Exception, name: str) -> str:
    """Hydra's finding as one line that names the key, the value and what to write instead."""
    message = str(error)
    unknown_option = re.search(r"Could not find '([^']+)/([^'/]+)'", message)
    if unknown_option:
        group, option = unknown_option.groups()
        options = re.findall(r"^\t(\S+)$", message, re.MULTILINE)
        near = difflib.get_close_matches(option, options, n=1)
        composed_model = re.search(r"In 'model/([^']+)': ", message)
        if composed_model and group in ("method", "size"):
            model = composed_model.group(1)
            hint = f"did you mean model={model.replace(option, near[0])}? " if near else ""
            return f"model={model}: no such file, and {group} {option} is unknown; {hint}one of: {', '.join(options)}"
        hint = f"did you mean {group}={near[0]}? " if near else ""
        return f"{group}={option} is unknown; {hint}one of: {', '.join(options)}"
    missing_group = re.search(r"Could not override '([^']+)'", message)
    unknown_key = re.search(r"Key '([^']+)' is not in struct", message)
    if unknown_key or missing_group:
        match = unknown_key or missing_group
        assert match
        path = re.search(r"full_key: (\S+)", message)
        key = path.group(1) if path else match.group(1)
        near = difflib.get_close_matches(key, known_keys(name), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see configs/ for the known ones"
        return f"config key {key} is unknown; {hint}"
    missing = re.search(r"Missing mandatory value: (\S+)", message)
    if missing:
        return f"config key {missing.group(1)} has no value: add {missing.group(1)}=VALUE"
    unfit = re.search(r"Error merging override (\S+)", message)
    if unfit:
        return f"{unfit.group(1)}: a group of settings stands there, and this value is none; see configs/ for its keys"
    return first_line(error)


def known_keys(name: str) -> list[str]:
    """Every dotted key of the default config, and every group."""
    keys = list(default_values(name, []))
    return [*keys, *dict.fromkeys(key.partition(".")[0] for key in keys)]


def full_key(error: Exception) -> str:
    found = re.search(r"full_key: (\S+)", str(error))
    return f" (config key {found.group(1)})" if found else ""
