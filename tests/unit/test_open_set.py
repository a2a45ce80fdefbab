"""Open-set recognition against scikit-learn and loops over the features."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_models import CLASSNAMES, TEMPLATES, Pictures, bundle, dual_encoder, image_encoder
from frozen_models import labels, named, open_set, sets, tower_features
from scikit import KNeighborsClassifier, normalize
from scikit import LogisticRegression as Reference
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, roc_curve
from sklearn.neighbors import LocalOutlierFactor as ReferenceFactor

from openslip.errors import MissingPackage, UserError
from openslip.evaluation.evaluation import with_unit
from openslip.evaluation.frozen_classifiers import LogisticRegression, NearestNeighbours
from openslip.evaluation.frozen_features import split_rows
from openslip.evaluation.novelty import Energy, LocalOutlierFactor, MaxSimilarity
from openslip.evaluation.open_set import separation

BY_PROBE = LogisticRegression(c=0.5, decrease=1e-13, max_iterations=5000)


def text_predictions(queries: np.ndarray, classes: list[int]) -> np.ndarray:
    """Most similar of some classes in the joint space, by the bundle's own encoding of single texts."""
    model = bundle(dual_encoder())
    means = []
    for label in classes:
        prompts = [model.encode_text([template.replace("{}", CLASSNAMES[label])])[0] for template in TEMPLATES]
        means.append(torch.stack(prompts).mean(dim=0).double())
    projection = model.model.image_projection.detach().double().numpy()
    similarity = normalize(queries @ projection) @ normalize(torch.stack(means).numpy()).T
    return np.array(classes)[similarity.argmax(axis=1)]


def nearest_neighbours(rows: np.ndarray, of_row: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions by scikit-learn, and the energy by a loop."""

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / 0.07)

    model = KNeighborsClassifier(5, weights=weights, metric="cosine", algorithm="brute").fit(rows, of_row)
    cosines = normalize(queries) @ normalize(rows).T
    energy = [-np.log(sum(np.exp(cosine / 0.07) for cosine in sorted(row)[-5:])) for row in cosines]
    return model.predict(queries), np.array(energy)


def logistic(rows: np.ndarray, of_row: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    model = Reference(C=0.5, tol=1e-12, max_iter=10_000).fit(rows, of_row)
    return model.predict(queries), -np.log(np.exp(model.decision_function(queries)).sum(axis=1))


@pytest.mark.parametrize(
    ("classifier", "reference"), [(NearestNeighbours(k=5, temperature=0.07), nearest_neighbours), (BY_PROBE, logistic)]
)
def test_figures_equal_those_of_scikit_learn(classifier: Any, reference: Any):
    train, seen, unseen = sets()
    evaluation = open_set(train, seen, unseen, classifier=classifier)
    figures = evaluation.run(bundle(dual_encoder().train()))

    model = dual_encoder()
    rows, of_seen, of_unseen = (tower_features(model, source) for source in (train, seen, unseen))
    fitted, held = (part.numpy() for part in split_rows(41, 0.25, 0))
    queries = np.concatenate([of_seen, of_unseen, rows[held]])
    known, truth = rows[fitted], np.concatenate([labels(seen), labels(unseen)])
    by_features, energy = reference(known, labels(train)[fitted], queries)
    factor = ReferenceFactor(n_neighbors=4, novelty=True).fit(normalize(known))
    novelty = {
        "max_similarity": -(normalize(queries) @ normalize(known).T).max(axis=1),
        "energy": energy,
        "local_outlier_factor": -factor.score_samples(normalize(queries)),
    }
    is_unseen = np.arange(40) >= 23
    by_text = text_predictions(np.concatenate([of_seen, of_unseen]), [5, 6])
    expected = {
        "mean_per_class_seen": 100 * balanced_accuracy_score(labels(seen), by_features[:23]),
        "mean_per_class_unseen": 100 * balanced_accuracy_score(labels(unseen), by_text[23:]),
    }
    for name, values in novelty.items():
        threshold = sorted(values[40:])[7]  # 80 % of ten
        ours = evaluation.arrays[f"novelty_{name}"]
        np.testing.assert_allclose(ours, values[:40], rtol=2e-4, atol=1e-6)
        accepted = ours <= threshold  # ranks are those of our values, because rounding exchanges close ones
        predictions = np.where(accepted, by_features[:40], by_text)
        per_class = [100 * np.mean(predictions[truth == label] == label) for label in range(7)]
        of_seen_classes, of_unseen_classes = np.mean(per_class[:5]), np.mean(per_class[5:])
        both = of_seen_classes + of_unseen_classes
        rates = roc_curve(~is_unseen, -ours, drop_intermediate=False)
        expected |= {
            f"roc_auc_{name}": 100 * roc_auc_score(is_unseen, ours),
            f"fpr95_{name}": 100 * rates[0][np.argmax(rates[1] >= 0.95)],
            f"mean_per_class_seen_{name}": of_seen_classes,
            f"mean_per_class_unseen_{name}": of_unseen_classes,
            f"harmonic_mean_{name}": 2 * of_seen_classes * of_unseen_classes / both if both else 0,
        }
        if name == "max_similarity":
            assert evaluation.arrays["predictions"].tolist() == predictions.tolist()
    expected |= {"chance": 100 / 7}
    expected |= {"num_seen_classes": 5, "num_unseen_classes": 2, "num_samples": 40}
    assert figures == pytest.approx(expected)
    assert evaluation.arrays["classnames"].tolist() == CLASSNAMES
    assert evaluation.arrays["labels"].tolist() == truth.tolist()
    assert evaluation.arrays["is_unseen"].tolist() == is_unseen.tolist()
    assert evaluation.headline(figures).startswith("open set (max_similarity): harmonic mean ")


def test_classes_are_matched_by_name_and_not_by_number():
    train, seen, unseen = sets()
    other = named(17, 3, [1, 0, 1])
    other.classes = [CLASSNAMES[6], CLASSNAMES[5]]
    one, two = (open_set(train, seen, source, templates=["{}"]) for source in (unseen, other))
    assert one.run(bundle(dual_encoder())) == two.run(bundle(dual_encoder()))
    assert two.arrays["classnames"].tolist()[5:] == [CLASSNAMES[6], CLASSNAMES[5]]


def test_separation_counts_ties_as_accepted():
    novelty, is_unseen = np.array([0.0, 1, 1, 2, 1, 3]), np.array([False] * 4 + [True] * 2)
    assert separation(novelty, is_unseen, "_x") == {"roc_auc_x": 100 * (1 + 2 * 0.5 + 0 + 4) / 8, "fpr95_x": 50}
    rng = np.random.default_rng(0)
    scores, group = rng.integers(0, 40, 500).astype(float), rng.random(500) < 0.3
    rates = roc_curve(~group, -scores, drop_intermediate=False)
    expected = {"roc_auc": 100 * roc_auc_score(group, scores), "fpr95": 100 * rates[0][np.argmax(rates[1] >= 0.95)]}
    assert separation(scores, group, "") == pytest.approx(expected)


def test_rates_are_shown_in_per_cent():
    for metric in ("harmonic_mean_energy", "roc_auc_energy", "fpr95_energy", "top1_seen"):
        assert with_unit(metric, 12.5) == "12.50 %"


def test_novelty_grows_with_the_distance_from_the_training_images():
    rng = np.random.default_rng(0)
    known = torch.from_numpy(rng.normal([5.0, 0, 0], 0.5, (60, 3)))
    queries = torch.tensor([[5.0, 0, 0], [5, 3, 0], [0, 5, 0]], dtype=torch.float64)
    scores = torch.tensor([[9.0, 0], [2, 0], [0, 0]], dtype=torch.float64)
    for novelty in (MaxSimilarity(), Energy(), LocalOutlierFactor(neighbours=20)):
        values = novelty(known, queries, scores)
        assert values[0] < values[1] < values[2]
        assert values.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"novelty": {}}, "novelty: open-set recognition expected at least one"),
        ({"held_out": 0}, "held_out=0: open-set recognition expected a share"),
        ({"accepted": 1}, "accepted=1: open-set recognition expected a share"),
        ({"features": "text"}, "features=text: open-set recognition expected tower"),
        ({"classifier": NearestNeighbours(k=32, temperature=1)}, "k=32: expected 1 to 31, the number of training"),
        ({"novelty": {"x": LocalOutlierFactor(neighbours=31)}}, "neighbours=31: the local outlier factor expected few"),
        ({"classnames": CLASSNAMES[:6]}, "classnames: 6 names for 7 class folders"),
        ({"classnames": ["crane", "crane", *"abcde"]}, "names several classes of train, and names tell classes apart"),
    ],
)
def test_a_recognition_that_cannot_be_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        open_set(*sets(), **options).run(bundle(dual_encoder()))


def test_classes_that_are_not_what_they_should_be_are_named():
    train, seen, unseen = sets()
    with pytest.raises(UserError, match="seen has images of 'line', and train has none"):
        open_set(train, unseen, unseen).run(bundle(dual_encoder()))
    with pytest.raises(UserError, match="unseen has images of 'a very long name of a thing', and so has train"):
        open_set(train, seen, seen).run(bundle(dual_encoder()))
    with pytest.raises(UserError, match=r"unseen has label 9, outside the 7 class names \(0 to 6\)"):
        open_set(train, seen, named(3, 0, [9])).run(bundle(dual_encoder()))
    with pytest.raises(UserError, match="train has 1 samples: expected at least 2"):
        open_set(Pictures(1), seen, unseen)
    with pytest.raises(UserError, match="texts need a text tower"):
        open_set(train, seen, unseen).run(bundle(image_encoder()))


def test_a_missing_library_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    with pytest.raises(MissingPackage, match=r'needs scikit-learn; pip install "openslip\[eval\]"'):
        LocalOutlierFactor(neighbours=20)
