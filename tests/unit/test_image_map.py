"""A map of images: nearest neighbours by loops, the points that are shown, and the page's drawing of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribute_models import VALUES, image_map
from evaluation_models import Pictures, bundle, dual_encoder, image_tower
from frozen_models import labels, named, tower_features
from sklearn.decomposition import PCA

from openslip.arrays import write_arrays
from openslip.errors import UserError
from openslip.models.projected_image_encoder import ProjectedImageEncoder
from openslip.report import write_report


def plane_encoder(embed_dim: int = 2) -> ProjectedImageEncoder:
    torch.manual_seed(0)
    return ProjectedImageEncoder(image_tower=image_tower(), embed_dim=embed_dim)


def points_of(model: ProjectedImageEncoder, source: Pictures) -> np.ndarray:
    rows = tower_features(model, source)
    with torch.no_grad():
        return model.double().project_image(torch.from_numpy(rows)).numpy()


def shares(values: list[Any], neighbours: list[int]) -> tuple[float, float]:
    pairs = [(i, j) for i in range(len(values)) for j in range(len(values)) if i != j]
    chance = np.mean([values[i] == values[j] for i, j in pairs])
    return 100 * float(np.mean([values[i] == values[j] for i, j in enumerate(neighbours)])), 100 * float(chance)


def test_metrics_equal_a_loop_over_neighbours():
    source = named(23, 4, [0, 1, 2, 3, 4, 5, 6, 0, 0])
    evaluation = image_map(source)
    metrics = evaluation.run(bundle(plane_encoder()))
    points, of_image = points_of(plane_encoder(), source), labels(source).tolist()
    others = [[j for j in range(23) if j != i] for i in range(23)]
    neighbours = [min(others[i], key=lambda j, i=i: float(np.hypot(*(points[i] - points[j])))) for i in range(23)]
    expected = {"num_samples": 23.0}
    for name in ("", "colour", "shape"):
        values = of_image if not name else [VALUES[name][label] for label in of_image]
        suffix = f"_{name}" if name else ""
        expected[f"top1{suffix}"], expected[f"chance{suffix}"] = shares(values, neighbours)
    assert metrics == pytest.approx(expected)
    assert 0 < metrics["top1_colour"] < 100
    np.testing.assert_allclose(evaluation.arrays["map_points"], points, rtol=1e-4, atol=1e-5)
    assert evaluation.arrays["map_keys"].tolist() == [f"picture{index}" for index in range(23)]
    assert "map_variance" not in evaluation.arrays
    assert evaluation.headline(metrics).startswith("map: ")


def test_wide_features_are_shown_by_their_principal_components():
    source = Pictures(19, seed=2)
    evaluation = image_map(source, features="tower", attributes=None)
    evaluation.run(bundle(dual_encoder()))
    rows = tower_features(dual_encoder(), source)
    truth = PCA(2).fit(rows)
    np.testing.assert_allclose(evaluation.arrays["map_variance"], 100 * truth.explained_variance_ratio_, rtol=1e-3)
    np.testing.assert_allclose(abs(evaluation.arrays["map_points"]), abs(truth.transform(rows)), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, {}, "the source has 1 samples: expected at least 2"),
        (9, {"features": "text"}, "features=text: a map of images expected"),
        (9, {"attributes": {"odd": ["no", "yes"]}}, "attribute 'odd' has 2 values, and an image has label 6"),
    ],
)
def test_a_map_that_cannot_be_is_refused(count: int, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        image_map(Pictures(count), **options).run(bundle(plane_encoder()))


def test_features_of_width_one_are_refused():
    with pytest.raises(UserError, match="features have width 1: expected at least 2"):
        image_map(Pictures(9)).run(bundle(plane_encoder(1)))


def page_of(folder: Path, arrays: dict[str, np.ndarray]) -> str:
    (folder / "metrics.csv").write_text("step,samples_seen\n")
    write_arrays(folder / "arrays" / "shape.npz", arrays)
    return write_report(folder).read_text()


def test_the_page_draws_a_map_for_each_attribute_in_the_colours_of_its_values(tmp_path: Path):
    evaluation = image_map(named(14, 2, [0, 1, 2, 3, 4, 5, 6]))
    evaluation.run(bundle(plane_encoder()))
    page = page_of(tmp_path, evaluation.arrays)
    assert page.count("<figcaption>colour</figcaption>") == page.count("<figcaption>shape</figcaption>") == 1
    assert page.count("<circle") == 2 * 14
    for place in range(3):  # blue, green and red, of 2, 2 and 3 of the 7 classes
        drawing = page.partition("<figcaption>shape")[0]
        assert drawing.count(f'fill="var(--s{place + 1})"') == 2 * [2, 2, 3][place]
    assert "<script" not in page


@pytest.mark.parametrize(
    "change",
    [
        {"map_points": np.zeros((3, 2), np.float32)},
        {"map_points": np.full((14, 2), np.nan, np.float32)},
        {"map_labels": np.zeros(2, np.int64)},
        {"map_labels": np.full(14, 99)},
    ],
)
def test_a_map_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, np.ndarray]):
    evaluation = image_map(named(14, 2, [0, 1, 2, 3, 4, 5, 6]))
    evaluation.run(bundle(plane_encoder()))
    page = page_of(tmp_path, {**evaluation.arrays, **change})
    assert "arrays/shape.npz does not hold a map of images" in page
