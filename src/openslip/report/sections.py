"""Sections of the page: settings and main metrics, views of the first batch, image-caption similarity, text files."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openslip.report.pieces import escape, heat, image_tag, matrix, percent
from openslip.report.run_files import Metrics, at, check, evaluation_names
from openslip.run.environment import read_starts

MAX_VIEW_SAMPLES = 8
MAX_SIMILARITY = 16


def header(folder: Path, config: dict[str, Any], metrics: Metrics) -> str:
    """Build the header: the main settings in one line, and a tile for each main metric."""
    method = at(config, "objective._target_")
    facts = {
        "method": method.rsplit(".", 1)[-1] if isinstance(method, str) else None,
        "image tower": at(config, "model.image_tower.name"),
        "image size": at(config, "image_size"),
        "global batch": at(config, "global_batch_size"),
        "seed": at(config, "seed"),
        **provenance(read_starts(folder)),
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


def provenance(starts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the facts about the computation that the header shows; the section Environment shows all of them.

    Args:
        starts: records of the run's starts, the first one first.
    """
    return {
        "precision": common(at(start, "precision") for start in starts),
        "devices": common(devices(start) for start in starts),
        "started": starts[0]["dates"][0] if starts else None,
        "commit": common(short(at(start, "commit")) for start in starts),
    }


def common(facts: Iterable[Any]) -> str | None:
    """Return the fact that all starts of a run have in common, or `several`."""
    different = {str(fact) for fact in facts} - {"None"}
    return "several" if len(different) > 1 else next(iter(different), None)


def devices(start: Any) -> str | None:
    """Return the number and the name of the devices that a start used."""
    ranks, name = at(start, "ranks"), at(start, "device")
    if name == "cpu":
        name = at(start, "hardware.cpu")
    return f"{ranks} x {name}" if name else None


def short(commit: Any) -> str | None:
    """Return a commit with the first 12 digits of its hash."""
    return re.sub(r"[0-9a-f]{40}", lambda digits: digits[0][:12], commit) if isinstance(commit, str) else None


def views(arrays: dict[str, np.ndarray]) -> str:
    """Build the section of views: samples of the first batch with all views of each image."""
    views = {name: array for name, array in arrays.items() if array.ndim == 4}
    captions = [array for array in arrays.values() if array.ndim == 1 and len(array)]
    check(bool(views), "arrays/views.npz holds no view")
    cards = []
    for place in range(min(MAX_VIEW_SAMPLES, *map(len, views.values()))):
        images = "".join(
            f"<div>{image_tag(views[name][place], f'view {name}')}<span>{escape(name)}</span></div>" for name in views
        )
        quotes = "".join(f"<q>{escape(texts[place])}</q>" for texts in captions if place < len(texts))
        cards.append(f'<figure class="card sample"><div class="views">{images}</div>{quotes}</figure>')
    many = "one view" if len(views) == 1 else f"{len(views)} views"
    with_captions = ", and its captions" if len(captions) > 1 else ", and its caption" if captions else ""
    return (
        f"<p>Samples of the first batch as the model gets them: {many} of each image{with_captions}.</p>"
        f'<div class="samples">{"".join(cards)}</div>'
    )


def similarity(arrays: dict[str, np.ndarray]) -> str:
    """Build the section of similarities: a matrix of the cosines between images and captions."""
    name = "arrays/similarity.npz"
    check({"matrix", "captions", "images"} <= arrays.keys(), f"{name} lacks matrix, captions or images")
    full = arrays["matrix"].astype(np.float64)
    fits = full.shape == (len(arrays["images"]), len(arrays["captions"])) and full.size > 0
    check(fits, f"the matrix of {name} does not fit its images and captions")
    check(np.isfinite(full).all(), f"the matrix of {name} is not finite")
    count = min(MAX_SIMILARITY, len(full))
    cosines, images, captions = full[:count, :count], arrays["images"][:count], arrays["captions"][:count]
    low, high = float(cosines.min()), float(cosines.max())
    found_text, found_image = (int((cosines.argmax(axis=axis) == np.arange(count)).sum()) for axis in (1, 0))
    head = [f'<th scope="col" title="{escape(caption)}">{place}</th>' for place, caption in enumerate(captions, 1)]
    rows = []
    for row, (image, caption) in enumerate(zip(images, captions, strict=True)):
        cells = [
            heat(
                (cosine - low) / ((high - low) or 1),
                f"{cosine:.2f}".replace("0.", ".").replace("-", "&minus;"),
                f"image {row + 1} with caption {column + 1}, {captions[column]}: cosine {cosine:.3f}",
                diagonal=row == column,
            )
            for column, cosine in enumerate(cosines[row])
        ]
        who = f"<b>{row + 1}</b>{image_tag(image, str(caption))}<span>{escape(caption)}</span>"
        rows.append((f'<div class="who">{who}</div>', cells))
    return (
        f"<p>Cosine of {count} images (rows) with their {count} captions (columns, same numbers): pale is "
        f"{low:.2f}, full colour {high:.2f}; true pairs are framed. The true caption is the most similar for "
        f"<b>{found_text} of {count}</b> images, the true image for <b>{found_image} of {count}</b> "
        f'captions.</p><div class="card scroll">{matrix(" similarity", head, rows)}</div>'
    )


def text_file(folder: Path, name: str) -> str:
    """Build a collapsed section with the content of a text file."""
    check((folder / name).is_file(), f"there is no {name}")
    text = (folder / name).read_text(encoding="utf-8", errors="replace")
    return f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>"
