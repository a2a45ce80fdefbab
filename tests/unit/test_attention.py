"""The choice among attention kernels changes rounding alone."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from openslip.models.attention import attention, compute_dtype, fused_is_fastest, varlen_is_possible

CPU = torch.device("cpu")


@pytest.mark.parametrize("form", ["all", "causal", "masked"])
def test_plain_products_equal_the_fused_kernel(form: str):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 16).bfloat16()
    mask = torch.rand(2, 1, 1, 7) < 0.7 if form == "masked" else None
    if mask is not None:
        mask[..., 0] = True
    assert not fused_is_fastest(CPU, q.dtype)
    found = attention(q, k, v, mask, causal=form == "causal")
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask, is_causal=form == "causal")
    assert (found - exact).abs().mean() < 2e-3  # bf16 has 8 bits, the values are of the size of 1


@pytest.mark.parametrize("form", ["all", "causal", "masked"])
def test_plain_products_in_float64_equal_a_loop_over_queries(form: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openslip.models.attention.fused_is_fastest", lambda device, dtype: False)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 16, dtype=torch.float64)
    mask = torch.rand(2, 1, 1, 7) < 0.7 if form == "masked" else None
    if mask is not None:
        mask[..., 0] = True
    found = attention(q, k, v, mask, causal=form == "causal")
    for sample, head, query in itertools.product(range(2), range(4), range(7)):
        keys = [
            key
            for key in range(7)
            if (form != "causal" or key <= query) and (mask is None or bool(mask[sample, 0, 0, key]))
        ]
        scores = [math.exp(float(q[sample, head, query] @ k[sample, head, key]) / 4) for key in keys]
        expected = sum((s / sum(scores)) * v[sample, head, key] for s, key in zip(scores, keys, strict=True))
        torch.testing.assert_close(found[sample, head, query], expected, rtol=0, atol=1e-6)


def test_16_bits_take_plain_products_on_the_cpu_alone():
    assert fused_is_fastest(CPU, torch.float32)
    assert fused_is_fastest(CPU, torch.float64)
    assert not fused_is_fastest(CPU, torch.float16)
    assert fused_is_fastest(torch.device("cuda"), torch.bfloat16)


def test_varlen_kernels_are_for_16_bits_on_gpus():
    assert not varlen_is_possible(CPU, torch.bfloat16, 64)
    assert not varlen_is_possible(torch.device("cuda"), torch.float32, 64)


def test_autocast_decides_the_type_of_products():
    x = torch.zeros(1)
    assert compute_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(x) == torch.bfloat16
        assert compute_dtype(x.double()) == torch.float64
