"""Settings in which the configs of several runs differ."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from openslip.run.identity import identity

LABELS = ("name", "runs_dir", "format")  # differ between any two runs, or say nothing about them
ABSENT = object()


def differences(configs: Sequence[dict[str, Any]]) -> list[tuple[list[str], tuple[str, ...]]]:
    """Return the keys in which configs differ, with the values of all configs as texts.

    Keys with the same values are returned together, because a resolved config repeats a value wherever it is used.
    Keys that change the numbers of training come first.
    """
    grouped: dict[tuple[str, ...], list[str]] = {}
    for key, values in _differing("", configs):
        grouped.setdefault(tuple(map(_text, values)), []).append(key)
    rows = [(sorted(keys, key=lambda key: (key.count("."), key)), texts) for texts, keys in grouped.items()]
    changing = {key for config in configs for key in identity(config)}
    return sorted(rows, key=lambda row: (not _changes(row[0], changing), row[0][0]))


def _differing(key: str, values: Sequence[Any]) -> Iterator[tuple[str, Sequence[Any]]]:
    blocks = [value for value in values if isinstance(value, dict)]
    if len(blocks) < len(values) and len(set(map(_text, values))) > 1:
        yield key, values
    # Keys inside are compared among the runs that have the block: the row above already says which runs lack it.
    for name in dict.fromkeys(name for block in blocks for name in block):
        path = f"{key}.{name}" if key else str(name)
        if path not in LABELS:
            for inner, of_blocks in _differing(path, [block.get(name, ABSENT) for block in blocks]):
                remaining = iter(of_blocks)
                yield inner, [next(remaining) if isinstance(value, dict) else ABSENT for value in values]


def _text(value: Any) -> str:
    if value is ABSENT:
        return "\N{EN DASH}"
    if isinstance(value, dict):
        target = value.get("_target_")
        return str(target).rpartition(".")[2] if target else f"{len(value)} settings"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _changes(keys: Sequence[str], changing: set[str]) -> bool:
    return any(other == key or other.startswith(f"{key}.") for key in keys for other in changing)
