"""Which deviations from a recording are seen, whatever the rounding."""

import math

import numpy as np
import pytest
from screens import too_wide

from openslip.verify.deviation import NUMBERS, TOLERANCES, Part, Row, Trio, gradient_rows, worst

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


def test_the_lines_of_a_row_fit_the_terminal_and_say_the_same():
    rows = [
        Row(
            "slip, 2 ranks, gather_with_grad: gradients by tensor",
            1e-6,
            1e-5,
            "worst of 45: visual.blocks.1.norm2.bias",
        ),
        Row("zero-shot: logits", 1e-6, 1e-5, ""),
        Row.skipped("training runs, ranks, zero-shot", "no meta.json in this folder of recordings"),
    ]
    for columns in (60, 80):
        width = columns - NUMBERS
        for row in rows:
            lines = row.lines(width, columns)
            assert not too_wide("\n".join(lines), columns)
            assert sorted(" ".join(lines).split()) == sorted(row.line(0).split())
    assert rows[0].lines(100, 200) == [rows[0].line(100)]
