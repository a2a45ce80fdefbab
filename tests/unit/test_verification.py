"""Verification and one-shot recognition against scikit-learn and loops; the draws by their properties."""

from typing import Any

import numpy as np
import pytest
import torch
from evaluation_models import Pictures, bundle, image_encoder, image_tower
from frozen_models import labels, tower_features, verification
from scikit import normalize
from sklearn.metrics import roc_auc_score

from openslip.errors import UserError
from openslip.evaluation.verification import draw_episodes, draw_pairs
from openslip.models.siamese import Siamese

LABELS = np.array([7, 3, 3, 7, 5, 5, 5, 7, 9, 3, 5, 5])  # 9 has one image


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_figures_equal_loops_over_pairs_and_episodes():
    source = Pictures(26, seed=2)
    evaluation = verification(source, ways=4)
    figures = evaluation.run(bundle(image_encoder().train()))
    rows, of_image = normalize(tower_features(image_encoder(), source)), labels(source)
    pairs = [(one, other) for one in range(26) for other in range(one + 1, 26)]
    similar, same = zip(*((rows[i] @ rows[j], of_image[i] == of_image[j]) for i, j in pairs), strict=True)
    assert figures["roc_auc"] == pytest.approx(100 * float(roc_auc_score(same, similar)))
    np.testing.assert_allclose(evaluation.arrays["similarities"], similar, atol=1e-6)
    assert evaluation.arrays["is_same"].tolist() == list(same)
    episodes = draw_episodes(of_image, 4, 30, np.random.default_rng((0, 1)))
    right = [
        max(range(4), key=lambda place, query=query, candidates=candidates: rows[query] @ rows[candidates[place]])
        == answer
        for query, candidates, answer in zip(*episodes, strict=True)
    ]
    assert evaluation.arrays["is_right"].tolist() == right
    assert figures["top1_4_way"] == pytest.approx(100 * np.mean(right))
    counts = {"chance": 25, "num_pairs": 325, "num_episodes": 30, "num_samples": 26}
    assert figures == {"roc_auc": figures["roc_auc"], "top1_4_way": figures["top1_4_way"], **counts}
    assert evaluation.headline(figures).startswith("verification: 4-way one-shot ")


def siamese() -> Siamese:
    torch.manual_seed(0)
    model = Siamese(image_tower=image_tower(), embed_dim=5)
    torch.nn.init.normal_(model.l1_weight, std=3)
    torch.nn.init.normal_(model.image_projection.weight)
    return model


def test_a_new_siamese_network_takes_like_images_for_the_same_class():
    encodings = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.9, 0.5], [0.9, 0.1, 0.2]])
    same, near, far = Siamese(image_tower=image_tower(), embed_dim=3).same_logits(encodings[:1], encodings)[0].tolist()
    assert same > near > far


def test_a_siamese_network_compares_by_its_own_distance():
    source = Pictures(26, seed=2)
    evaluation = verification(source, ways=4, similarity="model", features="joint")
    figures = evaluation.run(bundle(siamese()))
    model = siamese().double()
    rows = torch.from_numpy(tower_features(model, source))
    with torch.no_grad():
        encodings = torch.sigmoid(model.image_projection(rows)).tolist()
        weights, bias = model.l1_weight.tolist(), model.l1_bias.item()

    def logit(one: int, other: int) -> float:
        return bias + sum(a * abs(x - y) for a, x, y in zip(weights, encodings[one], encodings[other], strict=True))

    pairs = [(one, other) for one in range(26) for other in range(one + 1, 26)]
    np.testing.assert_allclose(
        evaluation.arrays["similarities"], [logit(*pair) for pair in pairs], rtol=1e-4, atol=1e-5
    )
    episodes = draw_episodes(labels(source), 4, 30, np.random.default_rng((0, 1)))
    right = []
    for query, candidates, answer in zip(*episodes, strict=True):
        logits = [logit(query, candidate) for candidate in candidates]
        right.append(logits.index(max(logits)) == answer)
    assert evaluation.arrays["is_right"].tolist() == right
    assert figures["top1_4_way"] == pytest.approx(100 * np.mean(right))


def test_equal_images_of_a_class_are_recognised_always():
    class Repeated(Pictures):
        def __getitem__(self, index: int, /):
            return Pictures(5)[index % 5]

    evaluation = verification(Repeated(25, labels=[index % 5 for index in range(25)]), ways=5, num_pairs=50)
    figures = evaluation.run(bundle(image_encoder()))
    assert (figures["roc_auc"], figures["top1_5_way"], figures["num_pairs"]) == (100, 100, 50)


def test_pairs_are_all_pairs_if_there_are_few():
    expected = [[one, other] for one in range(12) for other in range(one + 1, 12)]
    assert draw_pairs(LABELS, 66, generator()).tolist() == expected
    assert len(draw_pairs(LABELS, 65, generator())) == 65


def test_random_pairs_are_uniform_among_those_of_the_same_and_of_different_classes():
    pairs = draw_pairs(LABELS, 60, generator())
    is_same = LABELS[pairs[:, 0]] == LABELS[pairs[:, 1]]
    assert is_same.sum() == 30
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert draw_pairs(LABELS, 60, generator()).tolist() == pairs.tolist()
    assert draw_pairs(LABELS, 60, generator(1)).tolist() != pairs.tolist()
    long = np.tile(LABELS, 20)  # 240 images, 28,680 pairs
    drawn = np.sort(draw_pairs(long, 28_000, generator()), axis=1)
    is_same = long[drawn[:, 0]] == long[drawn[:, 1]]
    classes, counts = np.unique(long, return_counts=True)
    expected = counts * (counts - 1) / (counts * (counts - 1)).sum()
    shares = [np.mean(long[drawn[is_same][:, 0]] == label) for label in classes]
    np.testing.assert_allclose(shares, expected, atol=0.01)
    _, times = np.unique(drawn[is_same], axis=0, return_counts=True)
    num_same = (counts * (counts - 1) // 2).sum()
    assert times.max() <= 10 * 14_000 / num_same  # no pair is preferred
    assert len(times) > 0.8 * num_same


@pytest.mark.parametrize("ways", [2, 3, 4])
def test_episodes_have_different_classes_and_one_answer(ways: int):
    queries, candidates, answers = draw_episodes(LABELS, ways, 2000, generator())
    for query, row, answer in zip(queries, candidates, answers, strict=True):
        of_candidates = LABELS[row]
        assert len(set(of_candidates)) == ways
        assert of_candidates[answer] == LABELS[query]
        assert row[answer] != query
        assert LABELS[query] != 9  # which has no other image
    np.testing.assert_allclose(np.bincount(answers) / 2000, 1 / ways, atol=0.04)
    for label in (3, 5, 7):
        assert np.mean(LABELS[queries] == label) == pytest.approx(1 / 3, abs=0.05)
    assert set(queries.tolist()) == set(range(12)) - {8}
    assert set(candidates.ravel().tolist()) == set(range(12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": 8}, "ways=8: verification expected 2 to 7, the number of classes"),
        ({"ways": 1}, "ways=1: verification expected at least 2"),
        ({"num_pairs": 1}, "num_pairs=1: verification expected at least 2"),
        ({"num_episodes": 0}, "num_episodes=0: verification expected at least 1"),
        ({"features": "text"}, "features=text: verification expected tower"),
        ({"similarity": "l2"}, "similarity=l2: verification expected cosine or model"),
        ({"similarity": "model"}, "features=tower: similarity=model compares joint features: set features=joint"),
        ({"similarity": "model", "features": "joint"}, "is a ImageEncoder, which compares no images itself"),
    ],
)
def test_a_verification_that_cannot_be_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        verification(Pictures(14), **options).run(bundle(image_encoder()))


def test_classes_of_one_image_each_are_refused():
    with pytest.raises(UserError, match="no class has two images"):
        verification(Pictures(6, labels=[*range(6)])).run(bundle(image_encoder()))
    with pytest.raises(UserError, match="the source has 1 samples: expected at least 2"):
        verification(Pictures(1))
