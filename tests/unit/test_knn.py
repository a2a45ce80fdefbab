"""Nearest neighbours against a loop over all pairs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder, image_encoder, knn, transform
from scikit import KNeighborsClassifier
from torch import nn

from openslip.data.image.decode import open_image
from openslip.errors import UserError
from openslip.evaluation import knn as module
from openslip.evaluation.knn import nearest, rank_classes

RECORDED = Path(__file__).parents[1] / "data" / "zero_shot"


def ranked(
    queries: torch.Tensor, features: torch.Tensor, places: torch.Tensor, *, k: int, temperature: float
) -> list[list[int]]:
    num_classes = int(places.max()) + 1
    classes = rank_classes(queries, features, places, num_classes=num_classes, counts=[k], temperature=temperature)
    return classes[:, 0].tolist()


def features(model: nn.Module, source: Pictures) -> list[list[float]]:
    rows = []
    for index in range(len(source)):
        image = transform()(open_image(source[index].image, "")).double()
        with torch.no_grad():
            rows.append(model.image_tower(image[None])[0].tolist())  # pyright: ignore
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


@pytest.mark.parametrize("build", [dual_encoder, image_encoder])
def test_predictions_equal_a_naive_loop(build):
    train, test = Pictures(30, seed=1), Pictures(17)
    evaluation = knn(train, test)
    figures = evaluation.run(bundle(build().train()))
    ranking = []
    model = build().double().eval()
    train_features, expected = features(model, train), []
    for query in features(model, test):
        cosines = [sum(a * b for a, b in zip(query, row, strict=True)) for row in train_features]
        nearest = sorted(range(30), key=lambda place, cosines=cosines: -cosines[place])[:5]
        votes = [sum(math.exp(cosines[i] / 0.07) for i in nearest if i % 7 == label) for label in range(7)]
        expected.append(votes.index(max(votes)))
        ranking.append(sorted(range(7), key=lambda label, votes=votes: (-votes[label], label))[:5])
    assert evaluation.arrays["predictions"].tolist() == expected
    assert evaluation.arrays["labels"].tolist() == [index % 7 for index in range(17)]
    right = sum(one == index % 7 for index, one in enumerate(expected))
    among = sum(index % 7 in five for index, five in enumerate(ranking))
    shares = {"top1": 100 * right / 17, "top5": 100 * among / 17, "chance": 100 / 7}
    assert figures == {**shares, "num_samples": 17.0}


def test_the_report_gets_the_names_of_the_classes():
    train, test = Pictures(30, seed=1), Pictures(17)
    evaluation = knn(train, test)
    evaluation.run(bundle(image_encoder()))
    assert "classnames" not in evaluation.arrays
    train.classes = test.classes = [f"class {label}" for label in range(7)]
    evaluation = knn(train, test)
    evaluation.run(bundle(image_encoder()))
    assert evaluation.arrays["classnames"].tolist() == test.classes


def test_every_training_picture_is_its_own_nearest_neighbour():
    assert knn(Pictures(20), Pictures(20), k=1).run(bundle(image_encoder()))["top1"] == 100


def test_one_close_neighbour_outweighs_two_far_ones():
    features = nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]), dim=-1)
    labels, query = torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.0]])
    assert ranked(query, features, labels, k=3, temperature=0.07) == [[1, 0]]
    assert ranked(query, features, labels, k=3, temperature=10.0) == [[0, 1]]


def test_a_tiny_temperature_does_not_overflow():
    features, labels = torch.eye(3), torch.tensor([2, 0, 1])
    assert [row[0] for row in ranked(features, features, labels, k=3, temperature=1e-6)] == [2, 0, 1]


def test_equal_votes_go_to_the_lower_label_and_classes_without_votes_follow_in_their_order():
    features, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([4, 2])
    assert ranked(features[:1], features, labels, k=2, temperature=0.07) == [[2, 4, 0, 1, 3]]


@pytest.mark.parametrize("name", ["k5_T0.07", "k20_T0.07", "k20_T0.2"])
def test_figures_equal_those_that_dino_s_code_gave(name: str):
    arrays = np.load(RECORDED / "probe.npz", allow_pickle=False)
    figures = json.loads((RECORDED / "metrics.json").read_text())["metrics"]["knn"][name]
    train, test = (
        nn.functional.normalize(torch.from_numpy(arrays[f"{part}_features"]), dim=1) for part in ("train", "test")
    )
    classes = ranked(
        test, train, torch.from_numpy(arrays["train_targets"]), k=figures["k"], temperature=figures["temperature"]
    )
    hits = np.array(classes) == arrays["test_targets"][:, None]
    assert 100 * hits[:, 0].mean() == pytest.approx(figures["dino_top1_percent"])
    assert 100 * hits.any(axis=1).mean() == pytest.approx(figures["dino_top5_percent"])


def test_predictions_equal_scikit_learn():
    rng = np.random.default_rng(0)
    places = rng.integers(0, 8, 300)
    centres = rng.normal(size=(8, 6))
    rows, queries = centres[places] + rng.normal(0, 1.2, (300, 6)), rng.normal(size=(90, 6))
    unit, unit_rows = (nn.functional.normalize(torch.from_numpy(part), dim=1) for part in (queries, rows))
    for k in (1, 20, 300):
        model = KNeighborsClassifier(
            k, weights=lambda distances: np.exp((1 - distances) / 0.07), metric="cosine", algorithm="brute"
        )
        expected = model.fit(rows, places).predict(queries)
        classes = ranked(unit, unit_rows, torch.from_numpy(places), k=k, temperature=0.07)
        assert [row[0] for row in classes] == expected.tolist()


@pytest.mark.parametrize("block", [1, 7, 100])
def test_blocks_of_training_images_find_the_same_neighbours(monkeypatch: pytest.MonkeyPatch, block: int):
    torch.manual_seed(0)
    queries, rows = torch.randn(9, 5, dtype=torch.float64), torch.randn(50, 5, dtype=torch.float64)
    monkeypatch.setattr(module, "BLOCK", block)
    cosines, neighbours = nearest(queries, rows, 8)
    expected = (queries @ rows.T).topk(8, dim=1)
    assert neighbours.tolist() == expected.indices.tolist()
    torch.testing.assert_close(cosines, expected.values)


def test_several_k_are_evaluated_at_once():
    train, test = Pictures(30, seed=1), Pictures(17)
    several = knn(train, test, k=[5, 1, 3])
    metrics = several.run(bundle(image_encoder()))
    for k in (5, 1, 3):
        one = knn(train, test, k=k)
        expected = one.run(bundle(image_encoder()))
        assert (metrics[f"top1_k{k}"], metrics[f"top5_k{k}"]) == (expected["top1"], expected["top5"])
        if k == 5:
            assert {name: metrics[name] for name in expected} == expected
            assert several.arrays["predictions"].tolist() == one.arrays["predictions"].tolist()
        if k == 1:
            assert expected["top5"] == expected["top1"]  # DINO: no more guesses than neighbours
    assert len(metrics) == 10


@pytest.mark.parametrize("k", [[], [3, 3]])
def test_no_or_equal_numbers_of_neighbours_are_refused(k: list[int]):
    with pytest.raises(UserError, match="expected a number, or a list of different numbers"):
        knn(Pictures(30), Pictures(5), k=k)


@pytest.mark.parametrize("k", [0, 31])
def test_an_impossible_k_is_refused(k: int):
    with pytest.raises(UserError, match=f"k={k}: expected 1 to 30"):
        knn(Pictures(30), Pictures(5), k=k)


def test_a_training_picture_without_label_is_named():
    with pytest.raises(UserError, match="'picture2' has no label"):
        knn(Pictures(6, labels=[0, 1, None, 0, 1, 0]), Pictures(3)).run(bundle(image_encoder()))


def test_chance_counts_the_classes_there_are_and_not_their_numbers():
    labels = [5 * (index % 2) for index in range(20)]
    figures = knn(Pictures(20, labels=labels), Pictures(10, labels=labels[:10])).run(bundle(image_encoder()))
    assert figures["chance"] == 50
