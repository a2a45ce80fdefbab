"""Linear probe and few-shot classification against scikit-learn on features that a loop computes."""

from typing import Any

import numpy as np
import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder, image_encoder
from frozen_models import (
    fail_on_the_first_rank,
    few_shot,
    labels,
    named,
    probe,
    run_frozen_on_this_rank,
    sets,
    tower_features,
)
from ranks import Ranks
from scikit import LogisticRegression, normalize

from openslip.data.source import Source
from openslip.errors import UserError
from openslip.evaluation.few_shot import first_of_each_class
from openslip.evaluation.frozen_features import split_rows
from openslip.evaluation.probe import SWEEP, sweep


def reference(features: np.ndarray, of_row: np.ndarray, c: float) -> Any:
    return LogisticRegression(C=c, tol=1e-7, max_iter=5000).fit(features, of_row)


@pytest.mark.parametrize(("space", "unit"), [("tower", False), ("tower", True), ("joint", False), ("joint", True)])
def test_predictions_equal_scikit_learn(space: str, unit: bool):
    train, test = Pictures(60, seed=1), Pictures(31)
    evaluation = probe(train, test, features=space, normalise=unit, c=5.0)
    figures = evaluation.run(bundle(dual_encoder().train()))
    model = dual_encoder().double()
    rows, queries = (tower_features(model, source) for source in (train, test))
    if space == "joint":
        projection = model.image_projection
        assert projection is not None
        rows, queries = (part @ projection.detach().numpy() for part in (rows, queries))
    if unit:
        rows, queries = normalize(rows), normalize(queries)
    expected = reference(rows, labels(train), 5.0).predict(queries)
    assert evaluation.arrays["predictions"].tolist() == expected.tolist()
    assert evaluation.arrays["labels"].tolist() == labels(test).tolist()
    assert figures["top1"] == pytest.approx(100 * (expected == labels(test)).mean())
    assert figures["chance"] == 100 / 7
    assert figures["num_samples"] == 31
    assert figures["top5"] >= figures["top1"]


def test_labels_may_be_any_numbers():
    numbers = [3, 1 << 40, 77]
    train, test = (Pictures(24, seed=seed, labels=[numbers[i % 3] for i in range(24)]) for seed in (1, 2))
    evaluation = probe(train, test)
    evaluation.run(bundle(image_encoder()))
    rows, queries = (tower_features(image_encoder(), source) for source in (train, test))
    expected = reference(rows, labels(train), 0.5).predict(queries)
    assert evaluation.arrays["predictions"].tolist() == expected.tolist()


def test_the_final_fit_uses_train_and_validation():
    train, validation, test = Pictures(40, seed=1), Pictures(25, seed=2), Pictures(31)
    rows = [tower_features(image_encoder(), source) for source in (train, validation, test)]
    for options, fitted in [
        ({"validation": None}, [0]),
        ({"validation": 0.2}, [0]),
        ({"validation": validation}, [0, 1]),
    ]:
        evaluation = probe(train, test, **options)
        evaluation.run(bundle(image_encoder()))
        known = np.concatenate([labels((train, validation)[place]) for place in fitted])
        expected = reference(np.concatenate([rows[place] for place in fitted]), known, 0.5).predict(rows[2])
        assert evaluation.arrays["predictions"].tolist() == expected.tolist()
        assert evaluation.notes == {}


@pytest.mark.parametrize("by_share", [True, False])
def test_the_sweep_chooses_by_the_validation_images(by_share: bool):
    train, other, test = Pictures(40, seed=1), Pictures(25, seed=2), Pictures(31)
    evaluation = probe(train, test, c="sweep", validation=0.3 if by_share else other, normalise=True)
    evaluation.run(bundle(image_encoder()))
    rows, of_other, queries = (normalize(tower_features(image_encoder(), source)) for source in (train, other, test))
    if by_share:
        first, held = (part.numpy() for part in split_rows(40, 0.3, 0))
        fitted, held_out = (rows[first], labels(train)[first]), (rows[held], labels(train)[held])
        final = rows, labels(train)
    else:
        fitted, held_out = (rows, labels(train)), (of_other, labels(other))
        final = np.concatenate([rows, of_other]), np.concatenate([labels(train), labels(other)])

    def accuracy(c: float) -> float:
        return float(100 * (reference(*fitted, c).predict(held_out[0]) == held_out[1]).mean())

    c, best = sweep(accuracy)
    assert evaluation.notes == {"C": f"{c:.3g}, with {best:.2f} % on the validation images"}
    probabilities = reference(*final, c).predict_proba(queries)
    chosen = probabilities[np.arange(len(queries)), evaluation.arrays["predictions"]]
    assert (probabilities.max(axis=1) - chosen).max() < 1e-7  # the smallest C leaves classes this close


def test_the_sweep_halves_its_steps_around_the_peak():
    compared: list[float] = []

    def accuracy(c: float) -> float:
        compared.append(c)
        return -abs(np.log10(c) - np.log10(SWEEP[37]))

    assert sweep(accuracy)[0] == SWEEP[37]
    assert [SWEEP.index(c) for c in compared] == [0, 16, 32, 48, 64, 80, 96, 24, 40, 36, 44, 34, 38, 35, 37]
    assert (SWEEP[0], SWEEP[96]) == pytest.approx((1e-6, 1e6))
    assert SWEEP[56] / SWEEP[48] == pytest.approx(10)  # eight values per factor of ten


@pytest.mark.parametrize(("rising", "end"), [(True, 96), (False, 0)])
def test_the_sweep_stays_inside_its_values(rising: bool, end: int):
    assert sweep(lambda c: c if rising else -c)[0] == SWEEP[end]


def test_of_equally_good_values_the_smallest_is_chosen():
    assert sweep(lambda c: 50.0)[0] == SWEEP[0]
    assert sweep(lambda c: float(c >= SWEEP[30]))[0] == SWEEP[30]


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_a_split_is_seeded_and_complete(share: float):
    first, second = split_rows(20, share, 5)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(20))
    assert len(second) == min(max(round(20 * share), 1), 19)
    assert split_rows(20, share, 5)[1].tolist() == second.tolist()
    assert share != 0.3 or split_rows(20, share, 6)[1].tolist() != second.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": 0}, r"c=0: a linear probe expected a number above 0, or sweep"),
        ({"c": "best"}, "c=best: "),
        ({"c": "sweep"}, r"validation=null: c=sweep expected labelled images, or a share of train such as 0\.1"),
        ({"c": "sweep", "validation": 1.0}, r"validation=1\.0: expected labelled images, or a share"),
        ({"features": "head"}, "features=head: a linear probe expected tower"),
        ({"precision": "half"}, "precision=half: a linear probe expected float64 or float32"),
        ({"validation": Pictures(9, labels=[8] * 9), "c": "sweep"}, "no training image has label 8, which validation"),
    ],
)
def test_a_probe_that_cannot_be_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message) as caught:
        probe(Pictures(14, seed=1), Pictures(7), **options).run(bundle(image_encoder()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [probe, few_shot])
def test_other_classes_are_refused(make: Any):
    train, test = named(21, 1, [0, 1, 2]), named(7, 2, [0, 1, 3])
    with pytest.raises(UserError, match=r"no training image has label 3, which test images have \(1 such labels"):
        make(train, test).run(bundle(image_encoder()))
    test.classes = [*"abcdefg"]
    with pytest.raises(UserError, match=r"train and test have different classes \(7 and 7; a is not in both\)"):
        make(train, test)
    with pytest.raises(UserError, match="the test source has no samples"):
        make(train, Pictures(0, labels=[0]))


def drawn_by_a_loop(source: Source, count: int, seed: int) -> list[int]:
    rows, taken = [], dict.fromkeys(range(10), 0)
    for index in np.random.default_rng(seed).permutation(len(source)):
        label = source[int(index)].label
        assert label is not None
        if taken[label] < count:
            rows.append(int(index))
            taken[label] += 1
    return sorted(rows)


def test_few_shot_equals_scikit_learn_on_the_drawn_images():
    train, test, _ = sets()
    evaluation = few_shot(train, test)
    figures = evaluation.run(bundle(image_encoder()))
    rows, queries = (tower_features(image_encoder(), source) for source in (train, test))
    for place, count in enumerate([1, 3]):
        expected = []
        for seed in range(3):
            drawn = drawn_by_a_loop(train, count, seed)
            assert len(drawn) == 5 * count
            fit = reference(rows[drawn], labels(train)[drawn], 0.5)
            expected.append(100 * (fit.predict(queries) == labels(test)).mean())
        assert evaluation.arrays["accuracies"][place].tolist() == pytest.approx(expected)
        assert figures[f"top1_{count}_shot"] == pytest.approx(np.mean(expected))
        assert figures[f"top1_{count}_shot_std"] == pytest.approx(np.std(expected, ddof=1))
    assert (figures["chance"], figures["num_samples"]) == (20, 23)
    assert len(np.unique(evaluation.arrays["accuracies"])) > 2
    assert "by images per class 1: " in evaluation.headline(figures)


def test_more_shots_include_the_images_of_fewer():
    train = sets()[0]
    places = torch.from_numpy(labels(train))
    rows = [set(first_of_each_class(places, count, seed=4).tolist()) for count in (1, 2, 4)]
    assert rows[0] < rows[1] < rows[2]
    assert first_of_each_class(places, 1, seed=5).tolist() != first_of_each_class(places, 1, seed=4).tolist()
    assert sorted(rows[2]) == drawn_by_a_loop(train, 4, 4)


def test_one_seed_has_no_deviation():
    train, test, _ = sets()
    figures = few_shot(train, test, seeds=[3]).run(bundle(image_encoder()))
    assert list(figures) == ["top1_1_shot", "top1_3_shot", "chance", "num_samples"]


def test_a_class_with_too_few_images_is_named():
    train, test, _ = sets()  # class 0 has nine pictures, the others eight
    with pytest.raises(UserError, match=r"class 'green ring' has 8 training images, and shots=\[1, 9\] needs 9"):
        few_shot(train, test, shots=[1, 9]).run(bundle(image_encoder()))
    few_shot(train, test, shots=[8]).run(bundle(image_encoder()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": []}, r"shots=\[\]: few-shot expected different numbers"),
        ({"shots": [0, 1]}, r"shots=\[0, 1\]"),
        ({"shots": [2, 2]}, r"shots=\[2, 2\]"),
        ({"seeds": []}, r"seeds=\[\]"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]"),
        ({"c": -1}, r"c=-1"),
        ({"features": "text"}, "features=text: few-shot expected tower"),
    ],
)
def test_a_few_shot_that_cannot_be_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        few_shot(Pictures(14, seed=1), Pictures(7), **options)


@pytest.mark.parametrize("name", ["knn", "probe", "few_shot", "open_set", "open_set_by_probe", "verification"])
def test_two_ranks_equal_one_process_to_the_last_bit(two_ranks: Ranks, name: str):
    figures, arrays, notes = run_frozen_on_this_rank(name)
    for other_figures, other_arrays, other_notes in two_ranks(run_frozen_on_this_rank, name):
        assert (other_figures, other_notes) == (figures, notes)
        assert other_arrays.keys() == arrays.keys()
        for key in arrays:
            np.testing.assert_array_equal(other_arrays[key], arrays[key], err_msg=key)


def test_an_error_of_the_first_rank_ends_every_rank(two_ranks: Ranks):
    assert two_ranks(fail_on_the_first_rank) == ["rank 0 cannot", "rank 0: rank 0 cannot"]
    assert fail_on_the_first_rank() == "rank 0 cannot"
