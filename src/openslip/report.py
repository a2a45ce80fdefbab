"""A run's folder as one self-contained page: no scripts, nothing fetched, light and dark, any screen."""

import base64
import csv
import html
import io
import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import yaml
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from openslip.errors import UserError

MAX_VIEW_SAMPLES = 8
MAX_SIMILARITY = 16
MAX_PICTURES = 24
MAX_MATRIX = 24  # rows of a confusion matrix that are still readable
MAX_POINTS = 800  # of a curve
MAX_TEXT = 200_000  # characters of the config

Pixels = np.ndarray  # uint8 [3, H, W]


def write_report(run_folder: Path) -> Path:
    """Write `report.html` from what a run left, and return its path; the page's end names what was absent.

    Reads `metrics.csv`, `config.yaml`, `env.json`, `arrays/views.npz`, `arrays/similarity.npz`, and any other
    `arrays/NAME.npz` as the arrays of the evaluation NAME (`openslip.evaluation.zeroshot` lists them).

    Raises:
        UserError: the folder is not a run's.
    """
    if not any((run_folder / name).is_file() for name in ("metrics.csv", "config.yaml")):
        raise UserError(
            f"{run_folder}: not a run's folder, it has neither metrics.csv nor config.yaml; try runs/<name>"
        )
    config = _read_config(run_folder)
    metrics = _read_metrics(run_folder / "metrics.csv")
    sections, absent = [], []
    for title, build in (
        ("Training", lambda: _curves(metrics)),
        *(
            (_evaluation_title(name, config), lambda name=name: _evaluation(run_folder, name, metrics))
            for name in _evaluation_names(run_folder, metrics)
        ),
        ("Views", lambda: _views(_read_arrays(run_folder, "views"))),
        ("Images and captions", lambda: _similarity(_read_arrays(run_folder, "similarity"))),
        ("Configuration", lambda: _config_text(run_folder)),
        ("Environment", lambda: _environment(run_folder)),
    ):
        try:
            sections.append((title, build()))
        except _AbsentError as reason:
            absent.append((title, str(reason)))
    page = _page(run_folder.resolve().name, _header(run_folder, config, metrics), sections, absent)
    path = run_folder / "report.html"
    partial = run_folder / "report.html.tmp"
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


class _AbsentError(Exception):
    """Why a section is left out, in a few words."""


# Reading the folder


class _Series(NamedTuple):
    x: np.ndarray
    y: np.ndarray

    @property
    def last(self) -> float:
        return float(self.y[-1])


class _Metrics(NamedTuple):
    columns: dict[str, _Series]
    x_name: str
    step: int | None


def _read_metrics(path: Path) -> _Metrics:
    """Columns against samples seen; evaluations log steps alone, so other rows tell the samples per step."""
    rows: list[dict[str, float]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = [_numbers(row) for row in csv.DictReader(file)]
    rows = sorted((row for row in rows if "step" in row), key=lambda row: row["step"])
    per_step = [row["samples_seen"] / row["step"] for row in rows if row.get("samples_seen") and row["step"] > 0]
    factor, x_name = (per_step[-1], "samples seen") if per_step else (1, "step")
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row if name not in ("step", "samples_seen")):
        points = [(row["step"] * factor, row[name]) for row in rows if name in row]
        columns[name] = _Series(*np.array(points).T)
    return _Metrics(columns, x_name, int(rows[-1]["step"]) if rows else None)


def _numbers(row: dict[str | Any, str | Any]) -> dict[str, float]:
    numbers = {}
    for name, cell in row.items():
        try:
            numbers[name] = float(cell)
        except (TypeError, ValueError):  # an empty cell, or a row that a crash cut short
            continue
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _at(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _read_arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    path = folder / "arrays" / f"{name}.npz"
    if not path.is_file():
        raise _AbsentError(f"there is no arrays/{name}.npz")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise _AbsentError(f"arrays/{name}.npz cannot be read ({error})") from error
    except Exception as error:  # numpy passes on whatever a damaged zip file makes zipfile and zlib raise
        raise _AbsentError(f"arrays/{name}.npz is damaged ({error})") from error


def _evaluation_names(folder: Path, metrics: _Metrics) -> list[str]:
    logged = [name.split("/")[1] for name in metrics.columns if name.startswith("eval/") and name.count("/") == 2]
    stored = [path.stem for path in sorted((folder / "arrays").glob("*.npz"))]
    return [name for name in dict.fromkeys([*logged, *stored]) if name not in ("views", "similarity")]


def _evaluation_title(name: str, config: dict[str, Any]) -> str:
    title = _at(config, f"evaluation.{name}.title")
    return f"Evaluation {name}: {title}" if isinstance(title, str) else f"Evaluation {name}"


# Header


def _header(folder: Path, config: dict[str, Any], metrics: _Metrics) -> str:
    method = _at(config, "objective._target_")
    facts = {
        "method": method.rsplit(".", 1)[-1] if isinstance(method, str) else None,
        "image tower": _at(config, "model.image_tower.name"),
        "image size": _at(config, "image_size"),
        "global batch": _at(config, "global_batch_size"),
        "seed": _at(config, "seed"),
    }
    chips = "".join(
        f'<span class="fact"><span>{_e(name)}</span> {_e(value)}</span>'
        for name, value in facts.items()
        if isinstance(value, str | int)
    )
    tiles = []
    for name in _evaluation_names(folder, metrics):
        top1, chance = (metrics.columns.get(f"eval/{name}/{metric}") for metric in ("top1", "chance"))
        if top1 is not None:
            note = f"best {_percent(float(top1.y.max()))} while training" if top1.y.max() > top1.last else ""
            if chance is not None and chance.last > 0:
                note = f"{top1.last / chance.last:.3g} times chance ({_percent(chance.last)})" + (
                    f"; {note}" if note else ""
                )
            title = _at(config, f"evaluation.{name}.title")
            tiles.append((title if isinstance(title, str) else f"{name} top-1", _percent(top1.last), note))
    loss, speed = metrics.columns.get("train/loss"), metrics.columns.get("speed/samples_per_second")
    if loss is not None:
        tiles.append(("training loss, at the end", f"{loss.last:.4g}", f"{loss.y[0]:.4g} at the start"))
    if metrics.step is not None:
        seen = next(iter(metrics.columns.values())).x if metrics.columns else np.array([])
        note = (
            f"{max(float(series.x[-1]) for series in metrics.columns.values()):,.0f} samples seen" if len(seen) else ""
        )
        tiles.append(("steps", f"{metrics.step:,}", note if metrics.x_name == "samples seen" else ""))
    if speed is not None:
        tiles.append(("samples per second", f"{float(np.median(speed.y)):,.4g}", "median over the run"))
    cards = "".join(
        f'<div class="tile{" first" if place == 0 else ""}"><div class="label">{_e(label)}</div>'
        f'<div class="value">{_e(value)}</div><div class="note">{_e(note)}</div></div>'
        for place, (label, value, note) in enumerate(tiles)
    )
    return f'<div class="facts">{chips}</div><div class="tiles">{cards}</div>'


# Curves


def _curves(metrics: _Metrics) -> str:
    columns = metrics.columns

    def chosen(*names: str) -> dict[str, _Series]:
        return {name.split("/", 1)[1].replace("_", " "): columns[name] for name in names if name in columns}

    losses = [name for name in columns if name.startswith("train/") and name.endswith("loss")]
    accuracies = [name for name in columns if name.startswith("train/") and name.endswith("acc")]
    charts = [
        ("Loss", chosen(*losses), "", True),
        ("Accuracy within the batch", chosen(*accuracies), "%", True),
        ("Logit scale", chosen("train/logit_scale"), "", False),
        ("Learning rate", chosen("train/lr"), "", False),
        ("Samples per second", chosen("speed/samples_per_second"), "", True),
    ]
    drawn = [
        _chart(title, series, metrics.x_name, unit, smooth=smooth) for title, series, unit, smooth in charts if series
    ]
    if not drawn:
        raise _AbsentError("there is no metrics.csv, or no training step in it")
    smoothed = any(len(columns[name].x) >= 60 for name in (*losses, *accuracies))
    note = "<p>Pale: as measured. Bold: its moving mean.</p>" if smoothed else ""
    return f'{note}<div class="charts">{"".join(drawn)}</div>'


def _chart(
    title: str,
    series: dict[str, _Series],
    x_name: str,
    unit: str,
    *,
    smooth: bool = False,
    level: tuple[str, float] | None = None,
) -> str:
    # Colours that stand for the page's variables: an inline drawing then follows light and dark.
    ink, muted, grid = "#000001", "#000002", "#000003"
    colours = ["#000011", "#000012", "#000013", "#000014", "#000015", "#000016"]
    options: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "openslip",
        "font.size": 12,
        "text.color": ink,
        "axes.edgecolor": grid,
        "xtick.color": muted,
        "ytick.color": muted,
        "axes.labelcolor": muted,
        "path.simplify": True,
    }
    with mpl.rc_context(options):
        has_legend = len(series) > 1 or level is not None
        figure = Figure(figsize=(4.6, 3.0))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.135, 0.175, 0.85, 0.70 if has_legend else 0.78))
        for place, (name, (x, y)) in enumerate(series.items()):
            colour = colours[place % len(colours)]
            x_shown, y_shown = _thin(x, y)
            if smooth and len(x) >= 60:
                axes.plot(x_shown, y_shown, color=colour, linewidth=0.8, alpha=0.28)
                x_shown, y_shown = _thin(x, _moving_mean(y, len(y) // 25))
            marker = {"marker": "o", "markersize": 3.5} if len(x) <= 25 else {}
            axes.plot(x_shown, y_shown, color=colour, linewidth=1.8, solid_capstyle="round", label=name, **marker)
        if level is not None:
            axes.axhline(level[1], color=muted, linewidth=1.2, linestyle=(0, (4, 3)), label=level[0])
        axes.grid(axis="y", color=grid, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.set_xlabel(x_name, fontsize=11)
        axes.set_xlim(left=0)
        if unit == "%":
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]) if level else None)
        if has_legend:
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(-0.01, 1.0),
                ncols=4,
                frameon=False,
                fontsize=11,
                handlelength=1.4,
                columnspacing=1.2,
                borderaxespad=0.2,
            )
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = stream.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    names = {ink: "ink", muted: "muted", grid: "line"} | {c: f"s{i}" for i, c in enumerate(colours, 1)}
    for colour, name in names.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    label = _e(f"{title}{f', {unit}' if unit else ''}")
    ends = "; ".join(f"{name} ends at {_short(one.last)}" for name, one in series.items())
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{_e(title)}: {_e(ends)}"', 1)
    return f'<figure class="card"><figcaption>{label}</figcaption>{drawing}</figure>'


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= MAX_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int))
    return x[kept], y[kept]


def _moving_mean(y: np.ndarray, window: int) -> np.ndarray:
    """Centred; at the ends over what there is."""
    total = np.concatenate([[0.0], np.cumsum(y)])
    place = np.arange(len(y))
    half = np.minimum(window // 2, np.minimum(place, len(y) - 1 - place))
    return (total[place + half + 1] - total[place - half]) / (2 * half + 1)


# Evaluations


def _evaluation(folder: Path, name: str, metrics: _Metrics) -> str:
    prefix = f"eval/{name}/"
    series = {key.removeprefix(prefix): value for key, value in metrics.columns.items() if key.startswith(prefix)}
    parts = [_figures(series), _evaluation_charts(series, metrics.x_name)]
    try:
        parts += _classification(_read_arrays(folder, name), name)
    except _AbsentError as reason:
        if not any(parts):
            raise
        parts.append(f"<p>No pictures and no mistakes here: {_e(reason)}.</p>")
    return "".join(parts)


def _classification(arrays: dict[str, np.ndarray], name: str) -> list[str]:
    if not {"labels", "predictions"} <= arrays.keys():
        raise _AbsentError(f"arrays/{name}.npz holds no labels and predictions")
    labels, predictions = arrays["labels"], arrays["predictions"]
    try:
        _check(labels.ndim == 1 and labels.shape == predictions.shape and len(labels) > 0, "labels differ in shape")
        _check(min(labels.min(), predictions.min()) >= 0, "a negative label")
        return [_confusions(arrays), _pictures(arrays), _mistakes(arrays)]
    # A project's own evaluation may mean something else by these names: that must not cost a run its report.
    except (_AbsentError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _AbsentError(f"arrays/{name}.npz does not hold a classification ({error})") from error


def _check(condition: bool | np.bool_, reason: str) -> None:
    if not condition:
        raise _AbsentError(reason)


def _figures(series: dict[str, _Series]) -> str:
    if not series:
        return ""
    cells = []
    for metric, one in series.items():
        shares = metric.startswith(("top", "chance"))
        value = _percent(one.last) if shares else f"{one.last:,.0f}" if metric.startswith("num_") else _short(one.last)
        cells.append(f"<div><dt>{_e(_metric_name(metric))}</dt><dd>{value}</dd></div>")
    return f'<dl class="figures">{"".join(cells)}</dl>'


def _metric_name(metric: str) -> str:
    return re.sub(r"\btop(\d)", r"top-\1", metric.replace("num_", "").replace("_", " "))


def _evaluation_charts(series: dict[str, _Series], x_name: str) -> str:
    level = ("chance", series["chance"].last) if "chance" in series else None
    main = {_metric_name(key): one for key, one in series.items() if key in ("top1", "top5")}
    others = {_metric_name(key): one for key, one in series.items() if key.startswith("top1_")}
    charts = [
        _chart(title, lines, x_name, "%", level=line)
        for title, lines, line in (("Accuracy", main, level), ("Accuracy by attribute", others, None))
        if lines and max(len(one.x) for one in lines.values()) > 1
    ]
    return f'<div class="charts">{"".join(charts)}</div>' if charts else ""


def _class_names(arrays: dict[str, np.ndarray]) -> list[str]:
    if "classnames" in arrays:
        return [str(name) for name in arrays["classnames"]]
    return [str(label) for label in range(int(max(arrays["labels"].max(), arrays["predictions"].max())) + 1)]


def _confusions(arrays: dict[str, np.ndarray]) -> str:
    labels, predictions = arrays["labels"], arrays["predictions"]
    names = _class_names(arrays)
    tables = []
    if "attribute_values" in arrays and "attribute_names" in arrays:
        for attribute, values in zip(arrays["attribute_names"], arrays["attribute_values"], strict=True):
            distinct = list(dict.fromkeys(str(value) for value in values))
            of_class = np.array([distinct.index(str(value)) for value in values])
            if len(distinct) <= MAX_MATRIX:
                tables.append(_confusion(str(attribute), distinct, of_class[labels], of_class[predictions], of_class))
    elif len(names) <= MAX_MATRIX:
        tables.append(_confusion("class", names, labels, predictions, np.arange(len(names))))
    if not tables:
        return ""
    by = "attribute by attribute" if "attribute_values" in arrays else "class by class"
    return (
        f"<h3>What is taken for what, {by}</h3><p>Rows: the truth. Columns: what the model says. Per cent of "
        "the row; the diagonal is right.</p>"
        f'<div class="matrices">{"".join(tables)}</div>'
    )


def _confusion(title: str, values: list[str], truth: np.ndarray, said: np.ndarray, of_class: np.ndarray) -> str:
    counts = np.zeros((len(values), len(values)), dtype=np.int64)
    np.add.at(counts, (truth, said), 1)
    totals = counts.sum(axis=1)
    right = 100 * np.trace(counts) / max(counts.sum(), 1)
    share_of_value = np.bincount(of_class, minlength=len(values)) / len(of_class)
    chance = 100 * float(share_of_value[truth].mean())
    head = "".join(f'<th scope="col"><span>{_e(value)}</span></th>' for value in values)
    rows = []
    for row, value in enumerate(values):
        cells = []
        for column, other in enumerate(values):
            share = counts[row, column] / totals[row] if totals[row] else 0.0
            hint = f"{value} taken for {other}: {counts[row, column]:,} of {totals[row]:,}"
            text = "&ndash;" if not totals[row] else f"{100 * share:.0f}" if counts[row, column] else ""
            cells.append(_heat(share, text, hint, diagonal=row == column))
        rows.append(f'<tr><th scope="row">{_e(value)}</th>{"".join(cells)}</tr>')
    turned = " turned" if len(values) > 4 else ""
    return (
        f'<figure class="card"><figcaption><b>{_e(title)}</b> {_percent(float(right))} right, '
        f'chance {_percent(chance)}</figcaption><div class="scroll"><table class="matrix{turned}">'
        f"<thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></figure>"
    )


def _heat(strength: float, text: str, hint: str, *, diagonal: bool) -> str:
    """A cell whose colour lies over the page's own, so that it works on light and dark."""
    strength = min(max(strength, 0.0), 1.0)
    classes = " ".join(
        name for name, holds in (("strong", strength > 0.75), ("diagonal", diagonal), ("zero", strength == 0)) if holds
    )
    return f'<td class="{classes}" style="--h:{strength:.2f}" title="{_e(hint)}">{text}</td>'


def _mistakes(arrays: dict[str, np.ndarray]) -> str:
    labels, predictions, names = arrays["labels"], arrays["predictions"], _class_names(arrays)
    wrong = labels != predictions
    if not wrong.any() or len(names) <= 2:
        return ""
    pairs, counts = np.unique(np.stack([labels[wrong], predictions[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:10]
    totals = np.bincount(labels, minlength=len(names))
    rows = "".join(
        f"<tr><td>{_e(names[truth])}</td><td>{_e(names[said])}</td>"
        f'<td class="number">{counts[place]:,} of {totals[truth]:,}</td></tr>'
        for place, (truth, said) in zip(order, pairs.T[order], strict=True)
    )
    return (
        "<h3>Most frequent mistakes</h3>"
        '<div class="scroll"><table class="plain"><thead><tr><th>truth</th><th>model says</th>'
        f'<th class="number">pictures</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _pictures(arrays: dict[str, np.ndarray]) -> str:
    if not {"pictures", "picture_indices", "top_classes", "top_probabilities"} <= arrays.keys():
        return ""
    names = _class_names(arrays)
    cards = []
    shown = list(zip(arrays["pictures"], arrays["picture_indices"], strict=True))[:MAX_PICTURES]
    for pixels, index in shown:
        label = int(arrays["labels"][index])
        classes, probabilities = arrays["top_classes"][index], arrays["top_probabilities"][index]
        right = int(classes[0]) == label
        bars = "".join(
            f'<li class="{"truth" if int(one) == label else ""}">'
            f'<span class="name">{_e(names[int(one)])}</span>'
            f'<span class="share">{100 * probability:.1f} %</span>'
            f'<span class="bar"><i style="width:{100 * probability:.1f}%"></i></span></li>'
            for one, probability in zip(classes, probabilities, strict=True)
        )
        verdict = "&#10003; right" if right else "&#10007; wrong"
        truth = "" if right else f'<div class="true">is: {_e(names[label])}</div>'
        cards.append(
            f'<figure class="card picture {"right" if right else "wrong"}">{_image(pixels, names[label])}'
            f'<div><div class="verdict">{verdict}</div>{truth}<ol class="bars">{bars}</ol></div></figure>'
        )
    total = len(arrays["labels"])
    return (
        f"<h3>Test pictures</h3><p>{len(shown)} of {total:,}, evenly spread over the test set, not picked by "
        "result; the model's most probable names, the true one in green.</p>"
        f'<div class="pictures">{"".join(cards)}</div>'
    )


# Views and similarity


def _views(arrays: dict[str, np.ndarray]) -> str:
    captions = arrays.get("captions", np.array([]))
    views = {name: pixels for name, pixels in arrays.items() if name != "captions" and pixels.ndim == 4}
    _check(bool(views), "arrays/views.npz holds no view")
    order = {"image": 0, "aug1": 1, "aug2": 2}
    names = sorted(views, key=lambda name: (order.get(name, 3), name))
    count = min(MAX_VIEW_SAMPLES, *(len(pixels) for pixels in views.values()))
    cards = []
    for place in range(count):
        pictures = "".join(
            f"<div>{_image(views[name][place], f'view {name}')}<span>{_e(name)}</span></div>" for name in names
        )
        caption = f"<q>{_e(captions[place])}</q>" if place < len(captions) else ""
        cards.append(f'<figure class="card sample"><div class="views">{pictures}</div>{caption}</figure>')
    many = "one view" if len(names) == 1 else f"{len(names)} views"
    caption = ", and the caption that goes with them" if len(captions) else ""
    return (
        f"<p>Samples of the first batch as the model gets them: {many} of each picture{caption}.</p>"
        f'<div class="samples">{"".join(cards)}</div>'
    )


def _similarity(arrays: dict[str, np.ndarray]) -> str:
    _check(
        {"matrix", "captions", "images"} <= arrays.keys(),
        "arrays/similarity.npz lacks matrix, captions or images",
    )
    full = arrays["matrix"].astype(np.float64)
    _check(
        full.ndim == 2 and full.shape == (len(arrays["images"]), len(arrays["captions"])) and full.size > 0,
        "the matrix of arrays/similarity.npz does not fit its images and captions",
    )
    _check(np.isfinite(full).all(), "the matrix of arrays/similarity.npz is not finite")
    count = min(MAX_SIMILARITY, len(full))
    matrix, images, captions = full[:count, :count], arrays["images"][:count], arrays["captions"][:count]
    low, high = float(matrix.min()), float(matrix.max())
    found_text = int((matrix.argmax(axis=1) == np.arange(count)).sum())
    found_image = int((matrix.argmax(axis=0) == np.arange(count)).sum())
    head = "".join(f'<th scope="col" title="{_e(caption)}">{place}</th>' for place, caption in enumerate(captions, 1))
    rows = []
    for row, (image, caption) in enumerate(zip(images, captions, strict=True)):
        cells = "".join(
            _heat(
                (matrix[row, column] - low) / ((high - low) or 1),
                f"{matrix[row, column]:.2f}".replace("0.", ".").replace("-", "&minus;"),
                f"picture {row + 1} with caption {column + 1}, {other}: cosine {matrix[row, column]:.3f}",
                diagonal=row == column,
            )
            for column, other in enumerate(captions)
        )
        rows.append(
            f'<tr><th scope="row"><div class="who"><b>{row + 1}</b>{_image(image, str(caption))}'
            f"<span>{_e(caption)}</span></div></th>{cells}</tr>"
        )
    return (
        f"<p>Cosine of {count} pictures (rows) with their {count} captions (columns, same numbers): pale is "
        f"{low:.2f}, full colour {high:.2f}; own pairs are framed. The own caption is the most similar for "
        f"<b>{found_text} of {count}</b> pictures, the own picture for <b>{found_image} of {count}</b> "
        "captions.</p>"
        f'<div class="card scroll"><table class="matrix similarity"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


# Configuration and environment


def _config_text(folder: Path) -> str:
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")[:MAX_TEXT]
    except OSError as error:
        raise _AbsentError("there is no config.yaml") from error
    return f"<details><summary>The resolved config, as it ran</summary><pre>{_e(text)}</pre></details>"


def _environment(folder: Path) -> str:
    try:
        environment = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise _AbsentError("there is no env.json") from error
    except ValueError as error:
        raise _AbsentError(f"env.json cannot be read ({error})") from error
    rows = "".join(f"<tr><th>{_e(key)}</th><td>{_e(value)}</td></tr>" for key, value in _flat(environment, ""))
    return f'<div class="scroll"><table class="plain environment"><tbody>{rows}</tbody></table></div>'


def _flat(value: Any, prefix: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [row for key, part in value.items() for row in _flat(part, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        return [(prefix, ", ".join(map(str, value)) or "none")]
    if isinstance(value, bool) or value is None:
        return [(prefix, {True: "yes", False: "no", None: "none"}[value])]
    return [(prefix, str(value))]


# Pieces


def _e(text: object) -> str:
    return html.escape(str(text))


def _percent(value: float) -> str:
    return f"{value:.1f} %" if value >= 1 or value == 0 else f"{value:.2g} %"


def _short(value: float) -> str:
    """12000 as 12k, 3000000 as 3M."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g}{letter}"
    return f"{value:.4g}"


def _image(pixels: Pixels, alt: str) -> str:
    _check(pixels.ndim == 3 and len(pixels) == 3 and pixels.dtype == np.uint8, "a picture is not uint8 [3, H, W]")
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    stream = io.BytesIO()
    small = max(image.size) <= 64
    if small:
        image.save(stream, "PNG")
    else:
        image.thumbnail((192, 192))
        image.save(stream, "JPEG", quality=85)
    kind, shape = ("png", ' class="pixels"') if small else ("jpeg", "")
    data = base64.b64encode(stream.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img{shape} src="data:image/{kind};base64,{data}" alt="{_e(alt)}" {size}>'


def _page(name: str, header: str, sections: Sequence[tuple[str, str]], absent: Sequence[tuple[str, str]]) -> str:
    links = "".join(
        f'<a href="#part{place}">{_e(title.split(":")[0])}</a>' for place, (title, _) in enumerate(sections, 1)
    )
    body = "".join(
        f'<section id="part{place}"><h2>{_e(title)}</h2>{content}</section>'
        for place, (title, content) in enumerate(sections, 1)
    )
    body = _with_own_ids(body)
    missing = "".join(f"<li>{_e(title)}: {_e(reason)}.</li>" for title, reason in absent)
    left_out = f'<section class="absent"><h2>Left out</h2><ul>{missing}</ul></section>' if absent else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{_e(name)} - OpenSLIP</title><style>{_STYLE}</style></head><body><main>"
        f'<header><div class="eyebrow">OpenSLIP run</div><h1>{_e(name)}</h1>{header}'
        f"<nav>{links}</nav></header>"
        f"{body}{left_out}</main></body></html>\n"
    )


def _with_own_ids(page: str) -> str:
    """Every drawing calls its parts figure_1, axes_1 and so on: on one page these ids must not meet."""
    number = itertools.count(1)
    return re.sub(
        r"<svg.*?</svg>",
        lambda drawing: re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>d{next(number)}-", drawing[0]),
        page,
        flags=re.DOTALL,
    )


_STYLE = """
:root{--page:#f6f6f3;--card:#fff;--ink:#1b1e22;--muted:#5d6570;--line:#e2e2de;--heat:40 86 200;--on-heat:#fff;
--good:#177245;--bad:#b83227;--s1:#2856c8;--s2:#d2640a;--s3:#177245;--s4:#8436c9;--s5:#b83280;--s6:#0e7490}
@media(prefers-color-scheme:dark){:root{--page:#121417;--card:#1b1e23;--ink:#e9ebee;--muted:#9ba3ae;
--line:#2e333a;
--heat:72 118 235;--good:#5fce98;--bad:#ff8a7d;--s1:#84a9ff;--s2:#ffb066;--s3:#5fce98;--s4:#cba2ff;
--s5:#ff9bd0;--s6:#67d3e8}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:30px;line-height:1.2;margin:2px 0 14px;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:21px;line-height:1.3;margin:0 0 10px;letter-spacing:-.005em;overflow-wrap:anywhere}
h3{font-size:16px;margin:28px 0 4px}
p{margin:0 0 14px;color:var(--muted);max-width:76ch}p b{color:var(--ink)}
section{margin-top:48px;scroll-margin-top:16px}
.eyebrow{font-size:12px;font-weight:600;letter-spacing:.08em;text-transform:uppercase;color:var(--muted)}
.facts{display:flex;flex-wrap:wrap;gap:6px 20px;margin-bottom:20px}
.fact{font-weight:600}.fact span{font-weight:400;color:var(--muted)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tile{padding:14px 16px}.tile.first{border-left:4px solid var(--s1)}
.label{font-size:13px;color:var(--muted)}.value{font-size:29px;font-weight:650;line-height:1.25;
font-variant-numeric:tabular-nums}
.note{font-size:13px;color:var(--muted)}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:20px;padding-top:12px;
border-top:1px solid var(--line)}
nav a{color:var(--s1);text-decoration:none;padding:4px 0}nav a:hover{text-decoration:underline}
figure{margin:0}.card{padding:14px 16px}
figcaption{font-weight:600;font-size:14px;margin-bottom:4px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px;
margin-bottom:14px}
.charts svg{display:block;width:100%;height:auto;overflow:visible}
.charts svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important}
.figures{display:flex;flex-wrap:wrap;gap:10px 28px;margin:0 0 16px}.figures dt{font-size:13px;
color:var(--muted)}
.figures dd{margin:0;font-size:18px;font-weight:600;font-variant-numeric:tabular-nums}
.matrices{display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start}
.matrices figure{max-width:100%}.matrices figcaption{font-weight:400;color:var(--muted)}
.matrices figcaption b{color:var(--ink)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.matrix{border-collapse:separate;border-spacing:2px;font-size:13px}
.matrix th{font-weight:400;color:var(--muted);padding:2px 6px}.matrix th[scope=row]{text-align:right;
white-space:nowrap}
.matrix tbody td{background:rgb(var(--heat)/var(--h));min-width:42px;height:32px;text-align:center;
border-radius:4px;padding:0 2px}
.matrix td.zero{background:rgb(128 128 128/.07)}
.matrix td.strong{color:var(--on-heat)}.matrix td.diagonal{box-shadow:inset 0 0 0 1.5px var(--ink)}
.matrix.turned thead th{vertical-align:bottom;padding:2px 0}
.matrix.turned thead span{writing-mode:vertical-rl;transform:rotate(180deg);white-space:nowrap}
.matrix.turned tbody td{min-width:34px}
.similarity tbody td{min-width:40px;height:44px;font-size:12px}
.similarity thead th{text-align:center}
.who{display:flex;align-items:center;gap:8px;text-align:left;width:250px;white-space:normal}
.who b{width:18px;text-align:right;flex:none;color:var(--ink)}.who img{width:40px;height:40px;
object-fit:cover;flex:none}
.who span{font-size:12.5px;line-height:1.25;display:-webkit-box;-webkit-line-clamp:3;
-webkit-box-orient:vertical;overflow:hidden}
img{display:block;border-radius:5px}.pixels{image-rendering:pixelated}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr));gap:14px}
.views{display:flex;gap:8px}.views div{flex:1 1 0;max-width:140px}.views img{width:100%;height:auto}
.views span{font-size:12px;color:var(--muted)}
.sample q{display:block;margin-top:6px;overflow-wrap:anywhere;quotes:"\\201c" "\\201d"}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px}
.picture{display:flex;gap:14px;border-left-width:4px}.picture>img{width:104px;height:104px;object-fit:cover;
flex:none}
.picture>div{flex:1;min-width:0}.right{border-left-color:var(--good)}.wrong{border-left-color:var(--bad)}
.verdict{font-weight:600}.right .verdict{color:var(--good)}.wrong .verdict{color:var(--bad)}
.true{color:var(--good);overflow-wrap:anywhere;line-height:1.3}
.bars{list-style:none;margin:4px 0 0;padding:0;font-size:13px}
.bars li{display:grid;grid-template-columns:1fr auto;gap:0 8px;margin-top:4px;line-height:1.3}
.name{overflow-wrap:anywhere}.share{font-variant-numeric:tabular-nums;color:var(--muted)}
.bar{grid-column:1/3;height:5px;border-radius:3px;background:rgb(128 128 128/.18)}
.bar i{display:block;height:100%;min-width:1px;border-radius:3px;background:rgb(var(--heat))}
.truth .name{color:var(--good);font-weight:600}.truth .bar i{background:var(--good)}
.plain{min-width:min(100%,480px)}.plain th,.plain td{text-align:left;padding:6px 20px 6px 0;
border-bottom:1px solid var(--line);
vertical-align:top}.plain th{font-weight:400;color:var(--muted)}.plain .number{text-align:right}
.environment td{overflow-wrap:anywhere}
details{background:var(--card);border:1px solid var(--line);border-radius:10px}
summary{cursor:pointer;padding:12px 16px;font-weight:600}
pre{margin:0;padding:0 16px 16px;overflow-x:auto;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.absent{color:var(--muted);font-size:14px}.absent h2{font-size:16px}.absent ul{margin:0;padding-left:20px}
@media(max-width:600px){main{padding:20px 14px 48px}h1{font-size:24px}h2{font-size:19px}
section{margin-top:36px}
.tiles{grid-template-columns:1fr 1fr;gap:8px}.tile{padding:10px 12px}.tile.first{grid-column:1/3}
.value{font-size:23px}
.card{padding:12px}.who{width:112px}.who span{display:none}.who{width:66px}.matrix tbody td{min-width:34px}
.picture>img{width:84px;height:84px}}
@media print{body{background:#fff}.card,.tile{break-inside:avoid}}
"""
