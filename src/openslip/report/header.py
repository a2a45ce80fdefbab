"""Header of a run's page: its settings and provenance in one line, and a tile for each main metric."""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from openslip.report.pieces import duration, escape, percent, short
from openslip.report.run_files import Metrics, at, evaluation_names
from openslip.report.towers import tower_name
from openslip.run.environment import read_seconds, read_starts


def header(folder: Path, config: dict[str, Any], metrics: Metrics) -> str:
    """Build the header: the main settings in one line, and a tile for each main metric."""
    facts = settings(config) | provenance(folder)
    chips = "".join(f'<span class="fact"><span>{escape(name)}</span> {fact}</span>' for name, fact in facts.items())
    cards = "".join(
        f'<div class="tile{" first" if place == 0 else ""}"><div class="label">{escape(label)}</div>'
        f'<div class="value">{escape(value)}</div><div class="note">{escape(note)}</div></div>'
        for place, (label, value, note) in enumerate(tiles(folder, config, metrics))
    )
    return f'<div class="facts">{chips}</div><div class="tiles">{cards}</div>'


def settings(config: dict[str, Any]) -> dict[str, str]:
    """Return the main settings of a run by name, as HTML."""
    facts = {
        "method": method(config),
        "image tower": tower_name(at(config, "model.image_tower")),
        "text tower": tower_name(at(config, "model.text_tower")),
        "image size": at(config, "image_size"),
        "global batch": at(config, "global_batch_size"),
        "seed": at(config, "seed"),
    }
    return {name: escape(value) for name, value in facts.items() if isinstance(value, str | int)}


def method(config: dict[str, Any]) -> str | None:
    """Return the name of a run's objective."""
    target = at(config, "objective._target_")
    return target.rpartition(".")[2] if isinstance(target, str) else None


def provenance(folder: Path) -> dict[str, str]:
    """Return the facts about the computation by name, as HTML; the section Environment shows all of them."""
    starts, seconds = read_starts(folder), read_seconds(folder)
    facts = {
        "parameters": common(parameters(start) for start in starts),
        "precision": common(at(start, "precision") for start in starts),
        "devices": common(devices(start) for start in starts),
        "training time": None if seconds is None else duration(seconds),
        "commit": common(short_commit(at(start, "commit")) for start in starts),
    }
    named = {name: escape(fact) for name, fact in facts.items() if fact is not None}
    return named | ({"started": date(starts[0]["dates"][0])} if starts else {})


def common(facts: Iterable[Any]) -> str | None:
    """Return the fact that all starts of a run have in common, or `several`."""
    different = {str(fact) for fact in facts} - {"None"}
    return "several" if len(different) > 1 else next(iter(different), None)


def parameters(start: Any) -> str | None:
    """Return the number of parameters that a start trained."""
    counts = at(start, "parameters")
    if not isinstance(counts, dict) or not all(isinstance(count, int) for count in counts.values()):
        return None
    return short(sum(counts.values()))


def devices(start: Any) -> str | None:
    """Return the number and the name of the devices that a start used."""
    ranks, name = at(start, "ranks"), at(start, "device")
    if name == "cpu":
        name = at(start, "hardware.cpu")
    return f"{ranks} x {name}" if name else None


def short_commit(commit: Any) -> str | None:
    """Return a commit with the first 12 digits of its hash."""
    return re.sub(r"[0-9a-f]{40}", lambda digits: digits[0][:12], commit) if isinstance(commit, str) else None


def date(text: Any) -> str:
    """Return a date of `env.json` to the minute, as HTML; another text is returned as it is."""
    with suppress(TypeError, ValueError):
        at_minute = f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}"
        return f'<time datetime="{escape(text)}">{escape(at_minute.strip())}</time>'
    return escape(text)


def tiles(folder: Path, config: dict[str, Any], metrics: Metrics) -> Sequence[tuple[str, str, str]]:
    """Return label, value and note of each main metric."""
    shown = []
    for name in evaluation_names(folder, metrics):
        group = "eval_ema" if metrics.of_evaluation("eval_ema", name) else "eval"  # the weights that are loaded
        top1, chance = (metrics.columns.get(f"{group}/{name}/{metric}") for metric in ("top1", "chance"))
        if top1 is not None:
            notes = []
            if chance is not None and chance.last > 0:
                notes.append(f"{top1.last / chance.last:.3g} times chance ({percent(chance.last)})")
            if top1.y.max() > top1.last:
                notes.append(f"best {percent(float(top1.y.max()))} while training")
            title = at(config, f"evaluation.{name}.title")
            label = title if isinstance(title, str) else f"{name} top-1"
            shown.append((label, percent(top1.last), "; ".join(notes)))
    loss, speed = metrics.columns.get("train/loss"), metrics.columns.get("speed/samples_per_second")
    if loss is not None:
        shown.append(("training loss, at the end", f"{loss.last:.4g}", f"{loss.y[0]:.4g} at the start"))
    if metrics.step is not None:
        note = f"{metrics.x:,.0f} samples seen" if metrics.x_name == "samples seen" else ""
        shown.append(("steps", f"{metrics.step:,}", note))
    if speed is not None:
        shown.append(("samples per second", f"{float(np.median(speed.y)):,.4g}", "median over the run"))
    return shown
