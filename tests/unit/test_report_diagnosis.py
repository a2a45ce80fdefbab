"""The page's parts on geometry, classes, templates and calibration."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_models import bundle, dual_encoder
from geometry_models import geometry
from retrieval_models import Captioned

from openslip.arrays import write_arrays
from openslip.report import write_report
from openslip.report.drawings import point_map
from openslip.report.geometry import MEANINGS


def page_of(folder: Path, name: str, arrays: dict[str, np.ndarray], rows: str = "step,samples_seen\n") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.csv").write_text(rows)
    write_arrays(folder / "arrays" / f"{name}.npz", arrays)
    return write_report(folder).read_text()


def classified(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "classnames": np.array(["ant", "bee", "cat", "<b>"]),
        "labels": np.array([0, 0, 0, 1, 1, 2]),
        "predictions": np.array([0, 1, 1, 1, 0, 2]),
        **arrays,
    }


def cells(page: str) -> list[list[str]]:
    """Rows of the table of classes, as text."""
    table = page.partition('class="plain classes"')[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(<td>.*?)</tr>", table)
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]


def test_classes_are_listed_from_the_worst_with_their_counts(tmp_path: Path):
    page = page_of(tmp_path, "mine", classified())
    assert cells(page) == [
        ["ant", "33.3 %", "1 of 3", "2"],
        ["bee", "50.0 %", "1 of 2", "3"],
        ["cat", "100.0 %", "1 of 1", "1"],
    ]
    assert "mean over classes is <b>61.1 %</b>" in page
    assert "classes</summary>" not in page


def test_many_classes_are_folded_away(tmp_path: Path):
    labels = np.arange(30).repeat(2)
    names = np.array([f"class{number}" for number in range(30)])
    page = page_of(tmp_path, "mine", {"labels": labels, "predictions": labels * 0, "classnames": names})
    assert len(cells(page)) == 12
    assert "all 30 classes</summary>" in page
    assert page.count("<td>class29</td>") == 1


def test_templates_are_listed_from_the_best_below_their_ensemble(tmp_path: Path):
    arrays = classified(templates=np.array(["a {}", "the {}"]), template_top1=np.array([25.0, 75.0]))
    page = page_of(tmp_path, "mine", arrays)
    bars = page.partition("Accuracy by prompt template")[2].partition("</ol>")[0]
    assert re.findall(r'class="name">([^<]*)<', bars) == ["all templates together", "the {}", "a {}"]
    assert re.findall(r"([\d.]+) %</span>", bars) == ["50.0", "75.0", "25.0"]
    assert "<b>+0.0 points</b> compared with the mean" in page
    assert "<b>\N{MINUS SIGN}25.0 points</b> compared with the best" in page


def test_of_many_templates_the_best_and_the_worst_are_listed(tmp_path: Path):
    templates = np.array([f"{number} {{}}" for number in range(80)])
    page = page_of(tmp_path, "mine", classified(templates=templates, template_top1=np.arange(80.0)))
    bars = page.partition("Accuracy by prompt template")[2].partition("</ol>")[0]
    names = re.findall(r'class="name">([^<]*)<', bars)
    best, worst = [f"{number} {{}}" for number in range(79, 69, -1)], [f"{number} {{}}" for number in range(9, -1, -1)]
    assert names == ["all templates together", *best, "... 60 more ...", *worst]


def test_the_reliability_diagram_shows_the_bins_that_occur(tmp_path: Path):
    probabilities = np.array([0.55, 0.59, 0.58, 0.95, 0.95, 0.05], np.float32)[:, None]
    page = page_of(tmp_path, "mine", classified(top_probabilities=probabilities))
    drawing = page.partition("reliability")[2]
    hints = re.findall(r"<title>([^<]*)</title>", drawing)
    # right are the samples 0, 3 and 5
    assert hints == [
        "probability 0 to 7 %: 1 predictions\nmean probability 5.0 %\nright 100.0 %",
        "probability 53 to 60 %: 3 predictions\nmean probability 57.3 %\nright 33.3 %",
        "probability 93 to 100 %: 2 predictions\nmean probability 95.0 %\nright 50.0 %",
    ]
    error = (0.95 + 3 * abs(0.5733333 - 1 / 3) + 2 * 0.45) / 6
    assert f"calibration error <b>{100 * error:.1f} %</b>" in page
    assert "overconfident by 11.2 points" in page


@pytest.mark.parametrize(
    "change",
    [
        {"template_top1": np.array([1.0]), "templates": np.array(["a {}", "b {}"])},
        {"top_probabilities": np.full((6, 1), 2.0, np.float32)},
        {"top_probabilities": np.full((5, 1), 0.5, np.float32)},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_diagnosis_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, np.ndarray]):
    page = page_of(tmp_path, "mine", classified(**change))
    assert "arrays/mine.npz does not hold a classification" in page


def measured(count: int = 13) -> dict[str, np.ndarray]:
    evaluation = geometry(Captioned(count))
    evaluation.run(bundle(dual_encoder()))
    return evaluation.arrays


def test_a_geometry_is_shown_with_a_point_for_each_image_and_caption(tmp_path: Path):
    arrays = measured()
    page = page_of(tmp_path, "shape", arrays)
    figure = page.partition('class="card map"')[2].partition("</figure>")[0]
    assert (figure.count("<circle"), figure.count("<path")) == (13, 13)
    texts = re.findall(r"<title>([^<]*)</title>", figure)
    assert texts[0] == "image picture0\ncaption: a red ring, number 0"
    assert texts[13] == "caption: a red ring, number 0"
    assert re.findall(r"</i>([^<]*)</span>", figure) == ["images", "captions"]
    values = dict(zip(arrays["geometry_metrics"].tolist(), arrays["geometry_values"].tolist(), strict=True))
    for metric, (title, meaning) in MEANINGS.items():
        assert f'<td>{title}</td><td class="number"><b>{values[metric]:.4g}</b>' in page
        assert meaning.replace("'", "&#x27;") in page


def test_points_of_few_classes_have_their_colours(tmp_path: Path):
    arrays = measured() | {"map_classes": np.array([*"abcdefg"]), "map_labels": np.arange(13) % 2 + 3}
    page = page_of(tmp_path, "shape", arrays)
    figure = page.partition('class="card map"')[2].partition("</figure>")[0]
    assert re.findall(r"</i>([^<]*)</span>", figure) == ["d", "e"]
    assert re.findall(r'<circle[^>]*fill="var\(--s(\d)\)"', figure) == ["1", "2"] * 6 + ["1"]
    assert "class: d" in figure


@pytest.mark.parametrize(
    "change",
    [
        {"map_images": np.zeros((13, 3), np.float32)},
        {"map_texts": np.full((13, 2), np.nan, np.float32)},
        {"map_captions": np.array(["a"])},
        {"geometry_values": np.zeros(2)},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_geometry_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, np.ndarray]):
    page = page_of(tmp_path, "shape", measured() | change)
    assert "arrays/shape.npz does not hold a geometry" in page


def test_what_lies_higher_is_drawn_higher_and_both_axes_have_one_scale():
    points = np.array([[1.0, 1.0], [4.0, 1.0], [1.0, 5.0]])
    drawing = point_map([(points, [0, 0, 0], ["corner", "right", "above"], False)], "a map")
    corner, right, above = np.array(re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawing), float)
    scale = (corner[1] - above[1]) / 4
    assert scale > 100
    assert right - corner == pytest.approx([3 * scale, 0], abs=0.1)
    assert above - corner == pytest.approx([0, -4 * scale], abs=0.1)


def test_equal_points_are_drawn(tmp_path: Path):
    arrays = measured() | {name: np.zeros((13, 2), np.float32) for name in ("map_images", "map_texts")}
    assert page_of(tmp_path, "shape", arrays).count("<circle") == 13


def test_metrics_of_ema_weights_are_shown_beside_those_of_the_trained_ones(tmp_path: Path):
    rows = "step,samples_seen,eval/mine/top1,eval/mine/chance,eval_ema/mine/top1,eval_ema/mine/chance\n"
    rows += "1,64,10,5,20,5\n2,128,30,5,25,5\n"
    page = page_of(tmp_path, "other", {}, rows)
    assert 'aria-label="Accuracy: top-1 ends at 30; top-1 (EMA) ends at 25"' in page
    assert '<div class="value">25.0 %</div>' in page, "the tile is of the weights that are loaded"
    assert "5 times chance (5.0 %)" in page


def test_an_evaluation_of_metrics_only_says_nothing_of_images(tmp_path: Path):
    rows = "step,samples_seen,eval/held_out/loss\n1,64,3\n2,128,2\n"
    page = page_of(tmp_path, "held_out", {}, rows)
    assert "No images and no mistakes" not in page
    assert 'aria-label="Loss: loss ends at 2"' in page


@pytest.mark.parametrize("arrays", [None, {"roc_auc": np.array([1.0])}])
def test_an_evaluation_without_predictions_shows_its_metrics_alone(tmp_path: Path, arrays: dict[str, Any] | None):
    rows = "step,samples_seen,eval/few_shot/top1\n1,64,3\n"
    page = page_of(tmp_path, "few_shot", arrays or {}, rows)
    if arrays is None:
        (tmp_path / "arrays" / "few_shot.npz").unlink()
        page = write_report(tmp_path).read_text()
    assert "<dt>top-1</dt><dd>3.0 %</dd>" in page
    assert "No images and no mistakes" not in page


def test_gains_are_in_points_and_shares_in_per_cent(tmp_path: Path):
    rows = "step,samples_seen,eval/mine/ensemble_gain,eval/mine/calibration_error_percent\n1,64,-0.1379,15.8\n"
    page = page_of(tmp_path, "mine", {}, rows)
    assert "<dt>ensemble gain</dt><dd>-0.14 points</dd>" in page
    assert "<dt>calibration error</dt><dd>15.8 %</dd>" in page
