"""Multinomial logistic regression, with the objective of scikit-learn's `LogisticRegression`.

The fit minimises C x (sum of cross entropies) + (sum of squared weights) / 2, where the intercept is not penalised.
With two classes scikit-learn penalises the difference of their weights instead; so does this module. The minimiser is
L-BFGS (Nocedal and Wright 2006, Numerical Optimization, algorithm 7.4) on the device of the features, over blocks of
rows, so that the scores of all rows and classes are never in memory at once.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from openslip.errors import UserError
from openslip.evaluation.metrics import best_classes

# Scores, i.e. rows x classes, that are computed at a time: a CPU is fastest within its cache, a GPU on large products.
BLOCK = {"cpu": 2**18, "cuda": 2**25}
MEMORY = 10  # pairs of L-BFGS, as in SciPy, which scikit-learn calls
WINDOW = 10  # iterations whose decrease of the objective is compared with a limit: a single one may be small by chance
MAX_STEPS = 50  # evaluations of one line search, as in scikit-learn
DECREASE, CURVATURE = 1e-4, 0.9  # constants of the strong Wolfe conditions for quasi-Newton methods (ibid., 3.1)
GROWTH = 4  # factor on the step while it is known to be too short

Objective = Callable[[Tensor], tuple[float, Tensor]]  # value and gradient, both float64


class Logistic(NamedTuple):
    """Weights and intercepts of a fitted model, in the classes' order."""

    coef: Float64[Tensor, "classes width"]
    intercept: Float64[Tensor, " classes"]

    def scores(self, features: Float[Tensor, "rows width"]) -> Float64[Tensor, "rows classes"]:
        """Return each class's score; the softmax of a row's scores are its probabilities."""
        return features.double() @ self.coef.T + self.intercept

    def best(self, features: Float[Tensor, "rows width"], k: int) -> Int64[Tensor, "rows k"]:
        """Return the k classes of highest score of each row, best first; of equal ones, the lower class first."""
        blocks = features.split(rows_at_a_time(features, len(self.coef)))
        return torch.cat([best_classes(self.scores(rows), k) for rows in blocks])


def fit_logistic(
    features: Float[Tensor, "rows width"],
    labels: Int64[Tensor, " rows"],
    c: float,
    *,
    intercept: bool = True,
    tolerance: float = 1e-10,
    decrease: float = 0.0,
    max_iterations: int = 1000,
) -> Logistic:
    """Fit a logistic regression.

    Products are computed in the dtype of the features, all sums and the weights are float64. The result does not depend
    on any random state.

    Args:
        features: one row per sample, float32 or float64.
        labels: class of each row; the classes are numbered in ascending order of the labels that occur.
        c: scikit-learn's `C`, the factor on the sum of cross entropies; the smaller, the stronger the penalty.
        intercept: whether each class has an intercept; otherwise it is zero.
        tolerance: the fit ends when no entry of the objective's gradient, divided by c and the number of rows, is
            larger in magnitude. This is scikit-learn's `tol`, except that with an intercept the features are centred.
        decrease: the fit ends as well when `WINDOW` iterations have decreased the objective by no more than this share
            of it. Unlike the gradient's entries, this share does not depend on the number of classes, on C and on the
            length of the features.
        max_iterations: largest number of iterations of L-BFGS.

    Raises:
        UserError: c is not positive, or the labels are of one class only.
    """
    if not c > 0:
        raise UserError(f"c={c}: expected more than 0")
    classes, places = labels.unique(return_inverse=True)
    num_rows, width, num_classes = *features.shape, len(classes)
    if num_classes < 2:
        raise UserError(f"logistic regression: {num_rows} images of {num_classes} class: expected at least 2 classes")
    block = rows_at_a_time(features, num_classes)
    # An intercept that is not penalised makes the fit independent of the origin of the features; about their mean, it
    # takes fewer iterations.
    centre = features.mean(dim=0, dtype=torch.float64) if intercept else features.new_zeros(width, dtype=torch.float64)
    # For two classes, scikit-learn has one weight vector v with the penalty |v|^2 / 2. Here the classes have v/2 and
    # -v/2, whose penalty is |v|^2 / 4, so it is doubled.
    penalty = (2 if num_classes == 2 else 1) / (c * num_rows)

    def objective(flat: Tensor) -> tuple[float, Tensor]:
        """Return the mean cross entropy plus the penalty divided by c and the number of rows, as scikit-learn does."""
        weights = flat.view(num_classes, width + 1)
        gradient = torch.zeros_like(weights)
        total = torch.zeros_like(weights[0, 0])
        coef, bias = weights[:, :-1].to(features.dtype), weights[:, -1].to(features.dtype)
        for uncentred, of_row in zip(features.split(block), places.split(block), strict=True):
            rows = uncentred - centre.to(features.dtype)
            log_odds = (rows @ coef.T + bias).log_softmax(dim=1)  # [B, classes]
            total -= log_odds.gather(1, of_row[:, None]).sum(dtype=torch.float64)
            error = log_odds.exp_()  # probabilities; minus the one-hot truth, the gradient of the scores
            error[torch.arange(len(rows), device=rows.device), of_row] -= 1
            gradient[:, :-1] += error.T @ rows
            gradient[:, -1] += error.sum(dim=0, dtype=torch.float64)
        gradient /= num_rows
        gradient[:, :-1] += penalty * weights[:, :-1]
        if not intercept:
            gradient[:, -1] = 0
        value = total / num_rows + penalty / 2 * weights[:, :-1].square().sum()
        return value.item(), gradient.flatten()

    start = features.new_zeros(num_classes * (width + 1), dtype=torch.float64)
    with torch.no_grad():
        weights = minimise(objective, start, tolerance, decrease, max_iterations, torch.finfo(features.dtype).eps)
    coef, of_centre = weights.view(num_classes, width + 1).split([width, 1], dim=1)
    return Logistic(coef.contiguous(), of_centre[:, 0] - coef @ centre)


def rows_at_a_time(features: Float[Tensor, "rows width"], num_classes: int) -> int:
    return max(1, BLOCK[features.device.type] // num_classes)


def minimise(
    objective: Objective, start: Tensor, tolerance: float, decrease: float, max_iterations: int, noise: float
) -> Tensor:
    """Minimise a smooth convex function by L-BFGS and return where its gradient, or its decrease, is small enough.

    It ends as well if the value no longer decreases.

    Args:
        objective: function to its value and gradient.
        start: where to begin.
        tolerance: largest absolute entry of the gradient at the end.
        decrease: largest share of the value by which `WINDOW` iterations decrease it at the end.
        max_iterations: largest number of iterations.
        noise: relative rounding error of the objective's value.
    """
    x = start
    value, gradient = objective(x)
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)  # change of x, change of gradient, product
    values = deque([value], maxlen=WINDOW + 1)
    for _ in range(max_iterations):
        if gradient.abs().max() <= tolerance:
            break
        if len(values) > WINDOW and values[0] - values[-1] <= decrease * values[-1]:
            break
        direction = descent(gradient, pairs)
        first_step = 1.0 if pairs else min(1.0, 1 / gradient.abs().sum().item())
        step = line_search(objective, x, direction, value, gradient, first_step, noise * max(abs(value), 1))
        if step is None:
            break
        new_x, new_value, new_gradient = step
        change, difference = new_x - x, new_gradient - gradient
        product = change.dot(difference)
        if product > 0:
            pairs.append((change, difference, product))
        is_done = value - new_value <= noise * max(abs(value), 1)
        x, value, gradient = new_x, new_value, new_gradient
        values.append(value)
        if is_done:
            break
    return x


def descent(
    gradient: Float64[Tensor, " size"], pairs: deque[tuple[Tensor, Tensor, Tensor]]
) -> Float64[Tensor, " size"]:
    """Return the direction of L-BFGS: minus the approximate inverse Hessian times the gradient."""
    direction = -gradient
    factors = []
    for change, difference, product in reversed(pairs):
        factors.append(change.dot(direction) / product)
        direction -= factors[-1] * difference
    if pairs:
        _, difference, product = pairs[-1]
        direction *= product / difference.dot(difference)
    for (change, difference, product), factor in zip(pairs, reversed(factors), strict=True):
        direction += (factor - difference.dot(direction) / product) * change
    return direction


def line_search(
    objective: Objective,
    x: Float64[Tensor, " size"],
    direction: Float64[Tensor, " size"],
    value: float,
    gradient: Float64[Tensor, " size"],
    step: float,
    slack: float,
) -> tuple[Tensor, float, Tensor] | None:
    """Return a point along the direction that meets the strong Wolfe conditions, its value and its gradient.

    The slope of a convex function only grows, so that bisection finds such a point; None if rounding errors hide it.

    Args:
        objective: function to its value and gradient.
        x: where to begin.
        direction: direction in which the function decreases.
        value: value at `x`.
        gradient: gradient at `x`.
        step: factor on the direction that is tried first.
        slack: increase of the value that may be a rounding error.
    """
    slope = gradient.dot(direction).item()
    if not slope < 0:
        return None
    low, high = 0.0, float("inf")
    for _ in range(MAX_STEPS):
        new_x = x + step * direction
        new_value, new_gradient = objective(new_x)
        new_slope = new_gradient.dot(direction).item()
        if new_value > value + DECREASE * step * slope + slack or new_slope > -CURVATURE * slope:
            high = step
        elif new_slope < CURVATURE * slope:
            low = step
        else:
            return new_x, new_value, new_gradient
        step = GROWTH * step if high == float("inf") else (low + high) / 2
    return None
