"""The page of made-up runs: what it shows, that it needs nothing beside itself, and that it survives damage."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from PIL import Image

from openslip.errors import UserError
from openslip.report import charts as charts_module
from openslip.report import write_report
from openslip.report.charts import _moving_average, chart
from openslip.report.hover import MAX_STRIPS
from openslip.report.later_evaluations import with_later_evaluations
from openslip.report.run_files import Metrics, Series, read_metrics
from openslip.report.towers import tower_name
from openslip.report.training import grid

COLUMNS = ["step", "samples_seen", "train/loss", "train/clip_acc", "speed/samples_per_second"]
EVIL = '<script>alert("&")</script>'
VOID = {"meta", "link", "img", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Text, addresses, ids and images; fails on tags that do not close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.text, self.addresses, self.ids, self.images, self.tags = "", [], [], [], []
        self.links: list[str] = []  # to files beside the page, which only a click loads
        self._open: list[str] = []
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        if tag == "a" and not (found["href"] or "").startswith("#"):
            self.links.append(found["href"] or "")
        else:
            self.addresses += [found[key] for key in ("src", "href", "xlink:href") if key in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "img":
            data = (found["src"] or "").partition("base64,")[2]
            self.images.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


def write_metrics(folder: Path, rows: list[list[object]], extra: tuple[str, ...] = ()) -> None:
    lines = [",".join([*COLUMNS, *extra]), *(",".join(map(str, row)) for row in rows)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def zero_shot_arrays(size: int = 20, attributes: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 2, 3, 0, 1])
    predictions = np.array([0, 1, 3, 3, 2, 1])
    arrays = {
        "classnames": np.array(["red dot", "red line", "blue dot", EVIL]),
        "templates": np.array(["a {}"]),
        "labels": labels,
        "predictions": predictions,
        "top_classes": np.stack([predictions, (predictions + 1) % 4], axis=1),
        "top_probabilities": np.array([[0.75, 0.125]] * 6, dtype=np.float32),
        "images": rng.integers(0, 256, (6, 3, size, size), dtype=np.uint8),
        "image_indices": np.arange(6),
    }
    if attributes:
        arrays["attribute_names"] = np.array(["colour", "shape"])
        arrays["attribute_values"] = np.array([["red", "red", "blue", "blue"], ["dot", "line", "dot", "line"]])
    return arrays


def save(folder: Path, name: str, **arrays: np.ndarray) -> None:
    (folder / "arrays").mkdir(exist_ok=True)
    np.savez(folder / "arrays" / f"{name}.npz", **arrays)  # pyright: ignore[reportArgumentType]


def whole_run(folder: Path, size: int = 20) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    evaluated = ("eval/mine/top1", "eval/mine/chance", "eval/mine/num_samples", "eval/mine/top1_colour")
    rows: list[list[object]] = [
        [step, step * 64, 9 - step / 50, step / 4, 400 + step % 7, "", "", "", ""] for step in range(1, 200)
    ]
    rows += [[step, "", "", "", "", step / 4, 25, 6, step / 3] for step in (100, 200)]
    write_metrics(folder, rows, evaluated)
    config = {
        "objective": {"_target_": "openslip.objectives.slip.SLIP"},
        "model": {"image_tower": {"name": "vit_small_patch16_224"}},
        "global_batch_size": 64,
        "evaluation": {"mine": {"title": f"top-1 of {EVIL}"}},
        "note": EVIL,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "env.json").write_text(json.dumps({"torch": "2.99", "devices": [], "nested": {"key": EVIL}}))
    images = rng.integers(0, 256, (5, 3, size, size), dtype=np.uint8)
    captions = np.array(["one", "two", EVIL, "four", "five"])
    save(folder, "views", image=images, aug1=255 - images, aug2=images, captions=captions)
    matrix = np.eye(5, dtype=np.float32)
    matrix[0] = [0.1, 0.9, 0, 0, 0]
    save(folder, "similarity", matrix=matrix, captions=captions, images=images)
    save(folder, "mine", **zero_shot_arrays(size))
    return folder


def test_whole_run_has_every_section_and_its_metrics(tmp_path: Path):
    path = write_report(whole_run(tmp_path / "first"))
    assert path == tmp_path / "first" / "report.html"
    page = Page(path)
    for text in ("first", "SLIP", "vit_small_patch16_224", "2.99", "12,800 samples seen"):
        assert text in page.text
    assert "50.0 %" in page.text, "the last logged top-1"
    assert "2 times chance (25.0 %)" in page.text
    assert "Not available" not in page.text
    assert page.tags.count("svg") == 6, "loss, accuracy, speed, top-1, top-1 by attribute, calibration"
    assert len(page.images) == 15 + 5 + 6
    assert "4 of 5 images" in page.text
    assert "5 of 5 captions" in page.text


def test_page_needs_nothing_beside_itself(tmp_path: Path):
    page = Page(write_report(whole_run(tmp_path / "run")))
    assert "script" not in page.tags
    assert all(address.startswith(("data:", "#")) for address in page.addresses if address)
    assert not re.findall(r"url\((?!#)|@import", page.source)
    targets = {address[1:] for address in page.addresses if address and address.startswith("#")}
    assert targets <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", page.source)) <= set(page.ids)


def test_links_lead_to_the_files_beside_the_page(tmp_path: Path):
    folder = whole_run(tmp_path / "a b#1")
    save(folder, "100 %", **zero_shot_arrays())
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-000200.ckpt").write_bytes(bytes(2_345_678))
    (folder / "notes.txt").write_text("not a run's file")
    page = Page(write_report(folder))
    files = [unquote(link) for link in page.links]
    assert set(files) == {
        *("config.yaml", "env.json", "metrics.csv", "checkpoints/step-000200.ckpt"),
        *(f"arrays/{name}.npz" for name in ("views", "similarity", "mine", "100 %")),
    }
    assert all((folder / file).is_file() for file in files)
    assert "2.3 MB" in page.text


def test_metrics_of_later_evaluations_are_among_the_files(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    (tmp_path / "evaluation-knn-shards.json").write_text("{}")
    page = Page(write_report(tmp_path))
    assert "evaluation-knn-shards.json" in map(unquote, page.links)
    assert "metrics of a later evaluation" in page.text


def stored_result(run: Path, step: int, top1: float, name: str = "mine", config: dict[str, Any] | None = None) -> None:
    folder = run / "evaluations" / f"step-{step:06}"
    folder.mkdir(parents=True)
    record = {"evaluation": name, "checkpoint": "", "step": step, "metrics": {"top1": top1, "chance": 25.0}}
    text = json.dumps({**record, "headline_metric": "top1", "config": config or {}, "notes": {}})
    (folder / f"{name}.json").write_text(text)
    arrays: dict[str, Any] = zero_shot_arrays()
    arrays["labels"] = arrays["predictions"]  # no mistakes
    np.savez(folder / f"{name}.npz", **arrays)


def test_results_of_checkpoints_are_further_points_and_their_arrays_are_shown(tmp_path: Path):
    run = whole_run(tmp_path / "run")
    before = Page(write_report(run)).text
    assert "Most frequent mistakes" in before
    stored_result(run, 150, 31.5)  # between those of training, after steps 100 and 200
    page = Page(write_report(run)).text
    assert "50.0 %" in page
    assert "Most frequent mistakes" in page
    stored_result(run, 200, 77.5)
    page = Page(write_report(run))
    assert "77.5 %" in page.text
    assert "Most frequent mistakes" not in page.text  # in these arrays there are none
    assert "evaluations/step-000200/mine.json" in map(unquote, page.links)


def test_results_of_a_run_with_ema_weights_are_points_of_these(tmp_path: Path):
    columns = {name: Series(np.array([10.0]), np.array([50.0])) for name in ("eval/mine/top1", "eval_ema/mine/top1")}
    stored_result(tmp_path, 20, 77.5)
    (tmp_path / "evaluations" / "step-000020" / "mine.npz").unlink()
    metrics = with_later_evaluations(Metrics(columns, "samples seen", 10, 10.0), tmp_path)
    assert metrics.columns["eval_ema/mine/top1"].y.tolist() == [50, 77.5]
    assert metrics.columns["eval/mine/top1"].y.tolist() == [50]
    assert metrics.arrays == {}


def test_a_result_of_other_settings_is_a_curve_of_its_own(tmp_path: Path):
    columns = {"eval/mine/top1": Series(np.array([10.0]), np.array([50.0]))}
    metrics = Metrics(columns, "samples seen", 10, 10.0)
    (tmp_path / "config.yaml").write_text("evaluation: {mine: {templates: few, batch_size: 4}}\n")
    stored_result(tmp_path, 10, 77.5, config={"templates": "many", "batch_size": 4})
    later = with_later_evaluations(metrics, tmp_path).columns
    assert later["eval/mine/top1"].y.tolist() == [50]
    (name,) = [name for name in later if name.startswith("eval/mine-") and name.endswith("/top1")]
    assert later[name].y.tolist() == [77.5]
    shutil.rmtree(tmp_path / "evaluations")
    stored_result(tmp_path, 10, 77.5, config={"templates": "few", "batch_size": 8})  # which changes no metric
    assert with_later_evaluations(metrics, tmp_path).columns["eval/mine/top1"].y.tolist() == [77.5]
    shutil.rmtree(tmp_path / "evaluations")
    stored_result(tmp_path, 10, 77.5, config={"templates": "few", "batch_size": 8})
    text = "evaluation_samples: 100\nevaluation: {mine: {templates: few, batch_size: 4}}\n"
    (tmp_path / "config.yaml").write_text(text)
    assert with_later_evaluations(metrics, tmp_path).columns["eval/mine/top1"].y.tolist() == [50]


def test_an_evaluation_after_training_alone_has_a_section(tmp_path: Path):
    run = whole_run(tmp_path / "run")
    stored_result(run, 199, 12.5, name="later")
    (run / "evaluations" / "step-000199" / "damaged.json").write_text("{")
    page = Page(write_report(run))
    assert "Evaluation later" in page.text
    assert "12.5 %" in page.text
    read = with_later_evaluations(read_metrics(run / "metrics.csv"), run)
    assert read.columns["eval/later/top1"].x.tolist() == [199 * 64]


def test_the_labels_of_the_ticks_have_room_on_their_left():
    digit, dot = 0.636 * 12, 0.318 * 12  # widths in DejaVu Sans at 12 points

    def left_end(first: float, last: float) -> float:
        """Left end of the longest label of the y-axis, in points from the left edge of the drawing."""
        drawing = chart("x", {"a": Series(np.array([0.0, 100.0]), np.array([first, last]))}, "step", "")
        labels = re.findall(r'text-anchor: end[^"]*" x="([\d.]+)"[^>]*>([\d.]+)<', drawing)
        assert len(labels) >= 3
        return min(float(x) - digit * (len(text) - text.count(".")) - dot * text.count(".") for x, text in labels)

    assert left_end(2.0, 3.0) > 0
    assert left_end(10.00002, 10.00008) > 0


def rows_of_charts(count: int) -> list[int]:
    """Number of charts in each row of a grid, by the rules of style.css for a page of full width."""
    width, gap = 1180 - 2 * 24, 14
    style = (Path(charts_module.__file__).parent / "style.css").read_text()
    rules = dict(re.findall(r"(\.charts[^{},]*)\{([^}]*)\}", style))  # of equal selectors, the last one holds
    classes = re.findall(r'class="charts( \w+)?"', grid(["<figure></figure>"] * count))[0]
    own = f".charts.{classes.strip()}" if classes else ".charts"
    assert own in rules
    columns = rules[own].partition("grid-template-columns:")[2]
    if repeated := re.match(r"repeat\((\d+),", columns):
        number = int(repeated[1])
    else:
        smallest = int(re.findall(r"(\d+)px", columns)[0])
        number = (width + gap) // (smallest + gap)
    spans = [1] * count
    for selector, body in rules.items():
        if (span := re.search(r"grid-column:span (\d)", body)) and selector.startswith(f"{own} figure"):
            last = re.search(r"nth-last-child\(-n\+(\d+)\)", selector)
            first = max(0, count - int(last[1])) if last else 0
            spans[first:] = [int(span[1])] * (count - first)
    rows, room = [0], number
    for span in spans:
        if span > room:
            rows.append(0)
            room = number
        rows[-1] += 1
        room -= span
    return rows


@pytest.mark.parametrize("count", range(2, 20))
def test_no_row_of_a_wide_page_has_a_single_chart(count: int):
    rows = rows_of_charts(count)
    assert sum(rows) == count
    assert set(rows) <= {2, 3}
    assert rows == sorted(rows, reverse=True)


def test_text_of_a_run_is_escaped(tmp_path: Path):
    page = Page(write_report(whole_run(tmp_path / "a<b>&c")))
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 6, "title, class name, caption, config, environment"
    assert "a<b>&c" in page.text


def test_drawings_take_their_colours_from_the_page(tmp_path: Path):
    source = write_report(whole_run(tmp_path / "run")).read_text()
    drawings = "".join(re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): ?#[0-9a-f]+", drawings)
    used = set(re.findall(r"var\(--(\w+)\)", drawings))
    light, dark = source.split("prefers-color-scheme:dark")
    assert all(f"--{name}:" in light and f"--{name}:" in dark for name in used)


def test_two_evaluations_share_no_ids(tmp_path: Path):
    folder = whole_run(tmp_path / "run")
    evaluated = ("eval/mine/top1", "eval/other/top1")
    rows: list[list[object]] = [[step, step, 1, 1, 1, step, 2 * step] for step in range(1, 9)]
    write_metrics(folder, rows, evaluated)
    page = Page(write_report(folder))
    assert "Evaluation other" in page.text
    assert len(set(page.ids)) == len(page.ids)


def test_figures_of_a_run_that_goes_up_and_down(tmp_path: Path):
    evaluated = ("eval/mine/top1", "eval/mine/chance")
    losses = {1: 5.0, 2: 9.0, 3: 1.5}
    speeds = {1: 10, 2: 20, 3: 30}
    rows: list[list[object]] = [
        [step, step * 64, losses.get(step, 2.5), 50 - step % 7, speeds.get(step, 400), "", ""] for step in range(1, 101)
    ]
    rows += [[step, "", "", "", "", top1, 20] for step, top1 in ((20, 30), (60, 70), (100, 50))]
    write_metrics(tmp_path, rows, evaluated)
    page = Page(write_report(tmp_path))
    assert "50.0 %2.5 times chance (20.0 %); best 70.0 % while training" in page.text
    assert "2.55 at the start" in page.text
    assert "400median over the run" in page.text
    assert "1006,400 samples seen" in page.text
    assert 'aria-label="Loss: loss ends at 2.5"' in page.source
    assert 'aria-label="Accuracy: top-1 ends at 50"' in page.source


def test_a_curve_is_drawn_to_its_end_and_its_average_is_centred():
    y = np.zeros(5000)
    y[2000] = 1.0
    average = _moving_average(y, 201)
    expected = np.array([y[max(0, i - 100) : i + 101].mean() for i in range(5000)])
    np.testing.assert_allclose(average, expected, atol=1e-12)
    drawing = chart("Loss", {"loss": Series(np.arange(5000.0), y)}, "step", "")
    ticks = [float(text) for text in re.findall(r">(\d+)</text>", drawing)]
    assert max(ticks) >= 4000  # the first 800 points alone would end the axis at 800


def test_equal_curves_are_drawn_once_under_both_names():
    x = np.arange(1.0, 101.0)
    equal = {"loss": Series(x, 1 / x), "clip loss": Series(x, 1 / x), "ssl loss": Series(x, 2 / x)}
    drawing = chart("Loss", equal, "step", "", smooth=True)
    assert "loss = clip loss" in drawing
    bold = re.findall(r"stroke: var\(--(s\d)\); stroke-width: 1.8", drawing)
    assert bold == ["s1", "s3"], "the third curve keeps its colour"


@pytest.mark.parametrize(("noise", "drawn"), [(0.0, 1), (0.5, 2)])
def test_a_smooth_curve_is_not_drawn_a_second_time_as_its_average(noise: float, drawn: int):
    y = np.linspace(2, 1, 200) + noise * np.random.default_rng(0).random(200)
    drawing = chart("Loss", {"loss": Series(np.arange(200.0), y)}, "step", "", smooth=True)
    assert len(re.findall(r"stroke: var\(--s1\)", drawing)) == drawn


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (0.3, ["0", "0.1", "0.2", "0.3"]),
        (22_000, ["0", "5k", "10k", "15k", "20k"]),
        (3_000_000, ["0", "1M", "2M", "3M"]),
        (0.00005, ["0", "2e-5", "4e-5"]),
    ],
)
def test_ticks_are_round_numbers_in_one_unit(end: float, expected: list[str]):
    drawing = chart("Rate", {"rate": Series(np.array([0.0, 1.0]), np.array([0.0, end]))}, "step", "")
    after_x_axis = drawing.partition('id="matplotlib.axis_2"')[2]
    assert re.findall(r">([^<>\n]+)</text>", after_x_axis) == expected


@pytest.mark.parametrize("ends", [(14.2857, 14.2869), (25_000.1, 25_000.4), (-3.00002, -3.00001), (0.1, 0.9)])
def test_ticks_of_a_flat_curve_have_different_labels_at_even_distances(ends: tuple[float, float]):
    drawing = chart("Scale", {"scale": Series(np.array([0.0, 1.0]), np.array(ends))}, "step", "")
    labels = re.findall(r">([^<>\n]+)</text>", drawing.partition('id="matplotlib.axis_2"')[2])
    values = [float(label.replace("\N{MINUS SIGN}", "-").replace("k", "e3")) for label in labels]
    distances = np.diff(values)
    assert len(values) >= 2
    assert distances.min() > 0
    np.testing.assert_allclose(distances, distances[0], rtol=1e-3)


def test_steps_have_whole_ticks():
    drawing = chart("Loss", {"loss": Series(np.array([1.0, 2.0]), np.array([3.0, 2.0]))}, "step", "")
    x_axis = drawing.partition('id="matplotlib.axis_1"')[2].partition('id="matplotlib.axis_2"')[0]
    assert re.findall(r">([\d.]+)</text>", x_axis) == ["0", "1", "2"]


def test_the_mouse_shows_every_logged_value_where_it_is_drawn():
    x = np.array([10.0, 20.0, 40.0])
    drawing = chart("Accuracy", {"top-1": Series(x, np.array([1.5, 2.25, 60.0]))}, "step", "%")
    strips = re.findall(r'<rect x="([\d.]+)"[^>]*width="([\d.]+)"[^>]*><title>([^<]*)</title>', drawing)
    assert [text for *_, text in strips] == ["10 step\ntop-1: 1.5 %", "20 step\ntop-1: 2.25 %", "40 step\ntop-1: 60 %"]
    points = [float(place) for place in re.findall(r'<use [^>]*x="([\d.]+)"[^>]*style="fill: var\(--s1\)', drawing)]
    assert len(points) == 3
    for (start, width, _), point in zip(strips, points, strict=True):
        assert float(start) - 0.1 <= point <= float(start) + float(width) + 0.1


def test_a_long_curve_has_few_strips_from_its_first_to_its_last_point():
    x = np.arange(1.0, 10_001.0)
    titles = re.findall(r"<title>([^<]*)</title>", chart("Loss", {"loss": Series(x, x)}, "step", ""))
    assert len(titles) == MAX_STRIPS
    assert titles[0] == "1 step\nloss: 1"
    assert titles[-1] == "10,000 step\nloss: 10,000"


def test_metrics_of_any_evaluation_are_drawn_with_those_of_their_kind(tmp_path: Path):
    names = ("eval/a/recall_1", "eval/a/recall_5", "eval/a/loss", "eval/a/odd", "eval/a/num_images", "val/loss")
    rows: list[list[object]] = [[step, 64 * step, 9 / step, 5, 40, step, step, step, step, 7, step] for step in (1, 2)]
    write_metrics(tmp_path, rows, names)
    page = Page(write_report(tmp_path))
    drawn = re.findall(r'aria-label="([^"]*)"', page.source)
    assert "Recall: recall 1 = recall 5 ends at 2" in drawn
    assert {"Loss: loss ends at 2", "odd: odd ends at 2"} <= set(drawn)
    assert "Loss: loss ends at 4.5; validation loss ends at 2" in drawn
    assert not any("images" in label for label in drawn)


def test_test_images_fill_their_rows_and_span_the_test_set(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    stored = {name: array for name, array in zero_shot_arrays().items() if name != "images"}
    pictures = np.zeros((16, 3, 8, 8), np.uint8)
    pictures[:, 0, 0, 0] = np.arange(16)
    save(tmp_path, "mine", **stored | {"images": pictures, "image_indices": np.arange(16) % 6})
    shown = [np.array(image)[0, 0, 0] for image in Page(write_report(tmp_path)).images]
    assert len(shown) == 12, "a multiple of 2, 3 and 4"
    assert (shown[0], shown[-1]) == (0, 15)
    assert shown == sorted(set(shown))


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        (
            {
                "name": "vit_small_patch16_224",
                "arguments": {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
            },
            "depth 4, width 96, 3 heads, patch size 8",
        ),
        ({"name": "vit_small_patch16_224", "arguments": {"num_heads": 12}}, "vit_small_patch16_224 with 12 heads"),
        ({"name": "resnet50", "arguments": {}}, "resnet50"),
        ({"_target_": "a.TextTransformer", "width": 64, "depth": 1, "heads": 2}, "depth 1, width 64, 2 heads"),
        ({"_target_": "mine.Tower"}, "Tower"),
        (None, None),
    ],
)
def test_a_tower_is_named_by_its_model_or_by_its_sizes(tower: object, expected: str | None):
    assert tower_name(tower) == expected


def test_confusions_of_uneven_classes_equal_a_loop(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    labels, predictions = np.array([0, 0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 1, 0, 0])
    arrays = {"labels": labels, "predictions": predictions, "classnames": np.array(["ant", "bee", "cat", "dog"])}
    save(
        tmp_path,
        "uneven",
        **arrays,
        attribute_names=np.array(["size"]),
        attribute_values=np.array([["small", "small", "large", "small"]]),
    )
    page = Page(write_report(tmp_path))
    # right: 0, 0, 1, 1 are small for small, and so is one of a bee's; the cat is taken for an ant, an ant for a cat.
    assert "size 75.0 % right, chance 68.8 %" in page.text
    assert 'title="small taken for large: 1 of 7"' in page.source
    assert 'title="large taken for small: 1 of 1"' in page.source
    assert page.text.index("antbee2 of 5") < page.text.index("antcat1 of 5")  # the most frequent first
    assert "beeant1 of 2" in page.text
    assert "catant1 of 1" in page.text
    save(tmp_path, "uneven", **arrays)
    assert "class 37.5 % right, chance 25.0 %" in Page(write_report(tmp_path)).text


def test_confusion_counts_equal_a_loop(tmp_path: Path):
    page = Page(write_report(whole_run(tmp_path / "run")))
    arrays = zero_shot_arrays()
    for values in arrays["attribute_values"]:
        for true in set(values):
            rows = [i for i, label in enumerate(arrays["labels"]) if values[label] == true]
            for said in set(values):
                count = sum(values[arrays["predictions"][i]] == said for i in rows)
                assert f'title="{true} taken for {said}: {count} of {len(rows)}"' in page.source
    assert "colour 83.3 % right, chance 50.0 %" in page.text
    assert "shape 83.3 % right, chance 50.0 %" in page.text


def test_right_and_wrong_images_are_told_in_words(tmp_path: Path):
    page = Page(write_report(whole_run(tmp_path / "run")))
    assert page.text.count("\u2713 right") == 4
    assert page.text.count("\u2717 wrong") == 2
    assert f"is: {'blue dot'}" in page.text
    assert "75.0 %" in page.text


def test_small_images_are_kept_to_the_pixel(tmp_path: Path):
    folder = whole_run(tmp_path / "run")
    page = Page(write_report(folder))
    with np.load(folder / "arrays" / "mine.npz") as file:
        kept = {pixels.transpose(1, 2, 0).tobytes() for pixels in file["images"]}
    assert kept <= {image.tobytes() for image in page.images}


def test_page_stays_small_with_large_images(tmp_path: Path):
    folder = whole_run(tmp_path / "run", size=224)
    rng = np.random.default_rng(0)
    many = {"images": rng.integers(0, 256, (200, 3, 224, 224), dtype=np.uint8)}
    arrays = zero_shot_arrays() | many | {"image_indices": np.zeros(200, dtype=np.int64)}
    save(folder, "mine", **arrays)
    rows: list[list[object]] = [[step, step * 64, 1 / step, step % 100, 400] for step in range(1, 20_001)]
    write_metrics(folder, rows)
    assert write_report(folder).stat().st_size < 2_000_000


def test_same_run_gives_the_same_bytes(tmp_path: Path):
    folder = whole_run(tmp_path / "run")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert not (folder / "report.html.tmp").exists()


def test_absent_files_are_named(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    page = Page(write_report(tmp_path))
    for line in (
        "Training: there is no metrics.csv",
        "Views: there is no arrays/views.npz",
        "Images and captions: there is no arrays/similarity.npz",
        "Environment: there is no env.json",
    ):
        assert line in page.text
    assert "svg" not in page.tags


def test_damaged_files_are_named(tmp_path: Path):
    folder = whole_run(tmp_path / "run")
    (folder / "env.json").write_text("{1")
    (folder / "config.yaml").write_text("a: [1")
    whole = (folder / "arrays" / "views.npz").read_bytes()
    (folder / "arrays" / "views.npz").write_bytes(whole[: len(whole) // 2])
    save(folder, "similarity", matrix=np.eye(3), captions=np.array(["a"]), images=np.zeros((3, 3, 4, 4), np.uint8))
    np.savez(folder / "arrays" / "mine.npz", labels=np.array([{}], dtype=object), predictions=np.array([0]))
    with (folder / "metrics.csv").open("a") as file:
        file.write("201,12864,nan,inf,\n202,129")
    page = Page(write_report(folder))
    assert "arrays/views.npz" in page.text
    assert "does not fit its images and captions" in page.text
    assert "No images and no mistakes here: arrays/mine.npz cannot be read" in page.text
    assert "a: [1" in page.text, "a config that is no YAML is shown as it is"
    assert "{1" in page.text, "so is an environment that is no JSON"


def test_a_config_whose_evaluations_are_no_settings_is_shown_as_it_is(tmp_path: Path):
    folder = whole_run(tmp_path / "run")
    (folder / "config.yaml").write_text("evaluation: [builtin]")
    assert "evaluation: [builtin]" in Page(write_report(folder)).text


def test_metrics_that_a_spreadsheet_has_saved_are_read_or_named(tmp_path: Path):
    folder = whole_run(tmp_path / "run")
    page, text = write_report(folder).read_bytes(), (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text.replace("\n", "\r\n"), encoding="utf-8-sig")
    assert write_report(folder).read_bytes() == page
    for content in (text.replace(",", ";").encode(), text.encode("utf-16"), text.replace(",", "\t").encode()):
        (folder / "metrics.csv").write_bytes(content)
        with pytest.raises(UserError, match=r"metrics\.csv is not as the run wrote it \(its first line has no column"):
            write_report(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"predictions": np.array([0, 1])},
        {"predictions": np.array([0, 1, 2, 3, 4, 0])},
        {"labels": np.array([0, 1, 2, -1, 0, 1])},
        {"image_indices": np.array([0, 1, 2, 3, 4, 6])},
        {"image_indices": np.array([0])},
        {"images": np.zeros((6, 20, 20, 3), np.uint8)},
        {"top_classes": np.full((6, 2), 9)},
        {"top_probabilities": np.zeros((6, 3), np.float32)},
        {"attribute_values": np.array([["red", "red"]])},
    ],
    ids=lambda change: "-".join(change),
)
def test_arrays_that_do_not_fit_are_skipped(tmp_path: Path, change: dict[str, np.ndarray]):
    folder = whole_run(tmp_path / "run")
    save(folder, "mine", **(zero_shot_arrays() | change))
    page = Page(write_report(folder))
    assert "No images and no mistakes here: arrays/mine.npz does not hold a classification" in page.text
    assert page.tags.count("svg") == 5, "the logged metrics are shown all the same"


def test_nearest_neighbour_arrays_need_no_names(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    save(tmp_path, "knn", labels=np.array([0, 1, 1]), predictions=np.array([0, 1, 0]))
    page = Page(write_report(tmp_path))
    assert "class 66.7 % right, chance 50.0 %" in page.text
    assert 'title="1 taken for 0: 1 of 2"' in page.source


def test_many_classes_show_the_most_frequent_mistakes(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    labels = np.repeat(np.arange(1000), 3)
    predictions = labels.copy()
    predictions[[6, 7, 30]] = [9, 9, 8]
    names = np.array([f"class{i}" for i in range(1000)])
    save(tmp_path, "imagenet", labels=labels, predictions=predictions, classnames=names)
    page = Page(write_report(tmp_path))
    assert "class2class92 of 3" in page.text
    assert "class10class81 of 3" in page.text
    assert 'class="matrix' not in page.source


def test_unfinished_run_of_one_step_is_drawn(tmp_path: Path):
    write_metrics(tmp_path, [[1, 64, 9.5, 0, 100]])
    page = Page(write_report(tmp_path))
    assert page.tags.count("svg") == 3
    assert "9.5" in page.text


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, exists: bool):
    folder = tmp_path / "other"
    if exists:
        folder.mkdir()
    with pytest.raises(UserError, match="other: not a run's folder, it has neither metrics"):
        write_report(folder)
