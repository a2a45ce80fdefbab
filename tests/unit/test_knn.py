"""Nearest neighbours against a loop over all pairs."""

import math

import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder, image_encoder, knn, transform
from torch import nn

from openslip.data.image.decode import open_image
from openslip.errors import UserError
from openslip.evaluation.knn import vote


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
    model = build().double().eval()
    train_features, expected = features(model, train), []
    for query in features(model, test):
        cosines = [sum(a * b for a, b in zip(query, row, strict=True)) for row in train_features]
        nearest = sorted(range(30), key=lambda place, cosines=cosines: -cosines[place])[:5]
        votes = [sum(math.exp(cosines[i] / 0.07) for i in nearest if i % 7 == label) for label in range(7)]
        expected.append(votes.index(max(votes)))
    assert evaluation.arrays["predictions"].tolist() == expected
    assert evaluation.arrays["labels"].tolist() == [index % 7 for index in range(17)]
    right = sum(one == index % 7 for index, one in enumerate(expected))
    assert figures == {"top1": 100 * right / 17, "chance": 100 / 7, "num_samples": 17.0}


def test_every_training_picture_is_its_own_nearest_neighbour():
    assert knn(Pictures(20), Pictures(20), k=1).run(bundle(image_encoder()))["top1"] == 100


def test_one_close_neighbour_outweighs_two_far_ones():
    features = nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]), dim=-1)
    labels, query = torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0.0]])
    assert vote(query, features, labels, k=3, temperature=0.07).tolist() == [1]
    assert vote(query, features, labels, k=3, temperature=10.0).tolist() == [0]


def test_a_tiny_temperature_does_not_overflow():
    features, labels = torch.eye(3), torch.tensor([2, 0, 1])
    assert vote(features, features, labels, k=3, temperature=1e-6).tolist() == [2, 0, 1]


def test_equal_votes_go_to_the_lower_label():
    features, labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([4, 2])
    assert vote(features[:1], features, labels, k=2, temperature=0.07).tolist() == [2]


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
