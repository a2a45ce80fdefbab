"""Losses over labelled pairs against the papers' formulas as float64 loops, whatever the tiles."""

import math
from typing import Any

import pytest
import torch
from labelled_methods import MARGIN, labelled_model
from torch import Tensor

from openslip.errors import UserError
from openslip.objectives.objective import Objective
from openslip.verify.splits import in_tiles

LABELS = torch.tensor([4, 1, 4, 0, 7, 1, 4])  # 0 and 7 occur once
TILES = [None, 1, 4, 64]


def features(dim: int, names: tuple[str, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.rand(len(LABELS), dim, generator=generator, dtype=torch.float64) for name in names}
    return {**{name: x.requires_grad_() for name, x in made.items()}, "label": LABELS}


def loss_of(objective: Objective, model: Any, given: dict[str, Tensor], tile: int | None) -> float:
    with in_tiles(tile):
        loss = objective.terms(model, given)["loss"]
        loss.backward()
    return loss.item()


def views(given: dict[str, Tensor]) -> tuple[list[Tensor], list[int]]:
    return [*given["aug1"], *given["aug2"]], [*given["label"].tolist()] * 2


def naive_hadsell(given: dict[str, Tensor]) -> Tensor:
    """Equations 1 to 4: the mean over all pairs of different views."""
    points, labels = views(given)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for i in range(len(points)):
        for j in range(i + 1, len(points)):
            distance = sum((a - b) ** 2 for a, b in zip(points[i], points[j], strict=True)) ** 0.5
            if labels[i] == labels[j]:
                total = total + distance**2 / 2
            elif distance < MARGIN:
                total = total + (MARGIN - distance) ** 2 / 2
            count += 1
    return total / count


def naive_siamese(given: dict[str, Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """Section 3.1's distance and 3.2's cross entropy, with equal weight for pairs of the same and of other classes."""
    encodings, labels = views(given)
    of_kind: dict[bool, list[Tensor]] = {True: [], False: []}
    for i in range(len(encodings)):
        for j in range(i + 1, len(encodings)):
            differences = zip(encodings[i], encodings[j], weight, strict=True)
            logit = bias + sum(a * abs(x - y) for x, y, a in differences)
            p = 1 / (1 + torch.exp(-logit))
            of_kind[labels[i] == labels[j]].append(-torch.log(p if labels[i] == labels[j] else 1 - p))
    return sum(torch.stack(losses).mean() for losses in of_kind.values()) / 2  # pyright: ignore[reportReturnType]


def naive_zero_data(given: dict[str, Tensor], scale: float, bias: float) -> Tensor:
    """Each image with each description: cross entropy of whether it is one of the image's class, summed per image."""
    total = torch.zeros((), dtype=torch.float64)
    for x, label in zip(given["image"], LABELS.tolist(), strict=True):
        for d, described in zip(given["text"], LABELS.tolist(), strict=True):
            score = scale * (x @ d) / (x.norm() * d.norm()) + bias
            p = 1 / (1 + torch.exp(-score))
            total = total - torch.log(p if label == described else 1 - p)
    return total / len(LABELS)


def truth(method: str, model: Any, given: dict[str, Tensor]) -> Tensor:
    if method == "hadsell":
        return naive_hadsell(given)
    if method == "siamese":
        return naive_siamese(given, model.l1_weight.detach(), model.l1_bias.detach())
    return naive_zero_data(given, math.exp(2.0), -1.0)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("method", ["hadsell", "siamese", "zero_data"])
def test_loss_and_gradients_are_the_papers_formula(method: str, tile: int | None):
    model, objective = labelled_model(method)
    names = ("image", "text") if method == "zero_data" else ("aug1", "aug2")
    dim = 2 if method == "hadsell" else 10
    given, same = features(dim, names), features(dim, names)
    loss = loss_of(objective, model, given, tile)
    expected = truth(method, model, same)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for name in names:
        assert same[name].grad.abs().max() > 1e-3  # pyright: ignore
        torch.testing.assert_close(given[name].grad, same[name].grad, rtol=1e-10, atol=1e-13)


def test_views_at_one_point_give_a_finite_gradient():
    model, objective = labelled_model("hadsell")
    points = {name: torch.ones(7, 2, dtype=torch.float64, requires_grad=True) for name in ("aug1", "aug2")}
    loss = loss_of(objective, model, {**points, "label": LABELS}, None)
    labels = LABELS.tolist() * 2
    num_different = sum(one != other for one in labels for other in labels)
    assert loss == pytest.approx(num_different * MARGIN**2 / 2 / (14 * 13))
    for x in points.values():
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_one_class_alone_gives_a_finite_siamese_loss():
    model, objective = labelled_model("siamese")
    given = {**features(10, ("aug1", "aug2")), "label": torch.zeros(7, dtype=torch.long)}
    assert math.isfinite(loss_of(objective, model, given, None))


def test_zero_data_learning_needs_a_bias():
    model, objective = labelled_model("zero_data")
    model.register_parameter("logit_bias", None)
    with pytest.raises(UserError, match=r"model\.logit_bias_init=null: zero-data learning needs a bias"):
        objective.setup(model)


def test_the_scale_of_zero_data_learning_is_clamped_after_a_step():
    model, objective = labelled_model("zero_data")
    model.logit_scale.data.fill_(9.0)
    objective.after_step(model)
    assert model.logit_scale.item() == 4.6052
