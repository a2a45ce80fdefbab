"""The top of the page: what ran, and its main metrics."""

from pathlib import Path
from typing import Any

import numpy as np

from openslip.report.pieces import escape, percent
from openslip.report.run_files import Metrics, at, evaluation_names


def header(folder: Path, config: dict[str, Any], metrics: Metrics) -> str:
    """The choices in one line, and a tile for each main metric."""
    method = at(config, "objective._target_")
    facts = {
        "method": method.rsplit(".", 1)[-1] if isinstance(method, str) else None,
        "image tower": at(config, "model.image_tower.name"),
        "image size": at(config, "image_size"),
        "global batch": at(config, "global_batch_size"),
        "seed": at(config, "seed"),
    }
    chips = "".join(
        f'<span class="fact"><span>{escape(name)}</span> {escape(value)}</span>'
        for name, value in facts.items()
        if isinstance(value, str | int)
    )
    tiles = []
    for name in evaluation_names(folder, metrics):
        top1, chance = (metrics.columns.get(f"eval/{name}/{metric}") for metric in ("top1", "chance"))
        if top1 is not None:
            notes = []
            if chance is not None and chance.last > 0:
                notes.append(f"{top1.last / chance.last:.3g} times chance ({percent(chance.last)})")
            if top1.y.max() > top1.last:
                notes.append(f"best {percent(float(top1.y.max()))} while training")
            title = at(config, f"evaluation.{name}.title")
            label = title if isinstance(title, str) else f"{name} top-1"
            tiles.append((label, percent(top1.last), "; ".join(notes)))
    loss, speed = metrics.columns.get("train/loss"), metrics.columns.get("speed/samples_per_second")
    if loss is not None:
        tiles.append(("training loss, at the end", f"{loss.last:.4g}", f"{loss.y[0]:.4g} at the start"))
    if metrics.step is not None:
        note = f"{metrics.x:,.0f} samples seen" if metrics.x_name == "samples seen" else ""
        tiles.append(("steps", f"{metrics.step:,}", note))
    if speed is not None:
        tiles.append(("samples per second", f"{float(np.median(speed.y)):,.4g}", "median over the run"))
    cards = "".join(
        f'<div class="tile{" first" if place == 0 else ""}"><div class="label">{escape(label)}</div>'
        f'<div class="value">{escape(value)}</div><div class="note">{escape(note)}</div></div>'
        for place, (label, value, note) in enumerate(tiles)
    )
    return f'<div class="facts">{chips}</div><div class="tiles">{cards}</div>'
