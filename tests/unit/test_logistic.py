"""Logistic regression against recorded and live scikit-learn, and against the gradient of its objective."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from scikit import LogisticRegression

from openslip.config.folder import config_folder
from openslip.errors import UserError
from openslip.evaluation import logistic
from openslip.evaluation.logistic import Logistic, fit_logistic

RECORDED = Path(__file__).parents[1] / "data" / "zero_shot" / "probe.npz"
DECREASE = float(yaml.safe_load((config_folder() / "evaluation" / "probe.yaml").read_text())["probe"]["decrease"])
FITS = ["raw/C0.01", "raw/C0.316", "raw/C10.0", "normalized/C0.01", "normalized/C10.0"]


def made(rows: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, rows, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    features = rng.normal(size=(classes, width))[labels] + rng.normal(0, 1.5, (rows, width))
    return torch.from_numpy(features), torch.from_numpy(labels)


def reference(features: torch.Tensor, labels: torch.Tensor, c: float, **options: bool) -> Any:
    return LogisticRegression(C=c, tol=1e-12, max_iter=20_000, **options).fit(features.numpy(), labels.numpy())


@pytest.mark.parametrize("name", FITS)
def test_coefficients_equal_recorded_ones(name: str):
    arrays = np.load(RECORDED, allow_pickle=False)
    train, test = (torch.from_numpy(arrays[f"{part}_features"]).double() for part in ("train", "test"))
    if name.startswith("normalized"):
        train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    fit = fit_logistic(train, torch.from_numpy(arrays["train_targets"]), float(name.split("/C")[1]))
    np.testing.assert_allclose(fit.coef, arrays[f"{name}/coef"], atol=1e-4)
    np.testing.assert_allclose(fit.intercept, arrays[f"{name}/intercept"], atol=1e-4)
    np.testing.assert_allclose(fit.scores(test).softmax(1), arrays[f"{name}/test_probabilities"], atol=1e-5)


@pytest.mark.parametrize("c", [1e-4, 0.316, 100.0])
def test_three_uneven_classes_equal_scikit_learn(c: float):
    features, labels = made(200, 7, 3)
    labels = torch.tensor([4, 9, 17])[labels]  # labels are any numbers
    fit, expected = fit_logistic(features, labels, c), reference(features, labels, c)
    np.testing.assert_allclose(fit.coef, expected.coef_, atol=1e-5 * max(1, abs(expected.coef_).max()))
    np.testing.assert_allclose(fit.intercept, expected.intercept_, atol=1e-4)
    assert expected.classes_[fit.best(features, 1)[:, 0]].tolist() == expected.predict(features).tolist()


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_two_classes_are_penalised_as_scikit_learn_does(c: float):
    features, labels = made(150, 5, 2)
    fit, expected = fit_logistic(features, labels, c), reference(features, labels, c)
    np.testing.assert_allclose(fit.coef[1] - fit.coef[0], expected.coef_[0], atol=1e-6)
    np.testing.assert_allclose(fit.scores(features).softmax(1), expected.predict_proba(features), atol=1e-6)


def test_without_intercept_equals_scikit_learn():
    features, labels = made(150, 5, 4)
    fit, expected = (
        fit_logistic(features, labels, 0.5, intercept=False),
        reference(features, labels, 0.5, fit_intercept=False),
    )
    np.testing.assert_allclose(fit.coef, expected.coef_, atol=1e-5)
    assert fit.intercept.tolist() == [0] * 4


@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
def test_the_gradient_of_the_plain_objective_is_zero_at_the_fit(c: float):
    features, labels = made(120, 6, 5, seed=1)
    features *= torch.tensor([0.1, 1, 1, 3, 3, 1])
    coef, intercept = (part.clone().requires_grad_() for part in fit_logistic(features, labels, c, max_iterations=5000))
    loss = F.cross_entropy(features @ coef.T + intercept, labels, reduction="sum")
    (c * loss + coef.square().sum() / 2).backward()
    for part in (coef, intercept):
        assert part.grad is not None
        assert part.grad.abs().max() < 1e-5 * max(c, 1)


def test_any_blocks_of_rows_give_the_same_fit(monkeypatch: pytest.MonkeyPatch):
    features, labels = made(100, 6, 5)
    whole = fit_logistic(features, labels, 1.0)
    monkeypatch.setitem(logistic.BLOCK, "cpu", 35)  # seven rows
    for part, expected in zip(fit_logistic(features, labels, 1.0), whole, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-7)
    assert Logistic(*whole).best(features, 2).tolist() == whole.scores(features).topk(2).indices.tolist()


def test_float32_is_as_accurate_as_scikit_learn():
    features, labels = made(2000, 16, 8)
    queries, truth = made(2000, 16, 8)
    expected = LogisticRegression(max_iter=1000).fit(features.numpy(), labels.numpy()).score(queries, truth)
    fit = fit_logistic(features.float(), labels, 1.0, tolerance=1e-4)
    assert fit.coef.dtype == torch.float64
    accuracy = (fit.best(queries.float(), 1)[:, 0] == truth).double().mean()
    assert 100 * float(accuracy) == pytest.approx(100 * expected, abs=0.1)


@pytest.mark.parametrize("c", [0.316, 1e3, 1e5])
def test_the_decrease_that_ends_a_fit_reaches_the_optimum_of_many_classes(c: float):
    """With scikit-learn's default tolerance of the mean gradient, the last two are 8 and 13 points below it."""
    rng = np.random.default_rng(0)
    spread = np.arange(1, 33) ** -0.7  # as of features, a few directions vary most
    means = rng.normal(size=(120, 32)) * spread

    def drawn(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = np.repeat(np.arange(120), per_class)
        noise = rng.normal(size=(len(labels), 32)) * spread
        return torch.from_numpy(means[labels] + noise), torch.from_numpy(labels)

    (features, labels), (queries, truth) = drawn(6), drawn(10)
    fits = [fit_logistic(features, labels, c, decrease=limit, max_iterations=4000) for limit in (DECREASE, 0)]
    accuracy, best = (100 * float((fit.best(queries, 1)[:, 0] == truth).double().mean()) for fit in fits)
    assert abs(accuracy - best) <= 0.1
    optimum = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(features.numpy(), labels.numpy())
    assert abs(best - 100 * optimum.score(queries.numpy(), truth.numpy())) <= 0.1


def test_iterations_are_limited():
    features, labels = made(100, 6, 5)
    (one, _), (more, _) = (fit_logistic(features, labels, 1.0, max_iterations=limit) for limit in (1, 100))
    assert (one - more).abs().max() > 0.1


def test_a_fit_that_cannot_be_is_refused():
    features, labels = made(20, 3, 3)
    with pytest.raises(UserError, match=r"c=0: expected more than 0"):
        fit_logistic(features, labels, 0)
    with pytest.raises(UserError, match="20 images of 1 class: expected at least 2 classes"):
        fit_logistic(features, torch.zeros_like(labels), 1.0)
