"""Which deviations from a recording are seen, whatever the rounding."""

import math

import numpy as np
import pytest

from openslip.verify.deviation import TOLERANCES, Part, Trio, gradient_rows, worst

FLOAT32 = TOLERANCES["float32"]


def test_rounding_never_excuses_one_per_cent():
    assert FLOAT32.allow(1e-5, noise=1.0) == 1e-3
    assert FLOAT32.allow(1e-5, noise=1e-7) == 1e-5
    assert FLOAT32.allow(1e-5, noise=1e-5) == pytest.approx(8e-5)


@pytest.mark.parametrize("others", [[], [Part("near", 9e-6, 1e-5)]])
def test_what_is_no_number_deviates_most(others: list[Part]):
    row = worst("loss", [*others, Part("broken", math.nan, 1e-5)])
    assert not row.ok
    assert "broken" in row.note


@pytest.mark.parametrize(("error", "is_seen"), [(5e-3, True), (5e-6, False)])
def test_an_error_in_a_tensor_of_small_gradient_is_seen(error: float, is_seen: bool):
    """A bias whose gradient is a ten-thousandth of the model's is compared with its own size."""
    recorded = {"weight": np.full(100, 0.1), "bias": np.full(4, 0.5e-4)}
    ours = recorded | {"bias": recorded["bias"] * (1 + error)}
    model, tensors, _ = gradient_rows("step", recorded, Trio(ours, recorded, recorded), FLOAT32)
    assert model.ok, "as one vector the error is invisible"
    assert tensors.ok != is_seen
