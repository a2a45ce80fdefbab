"""The choice among attention kernels changes rounding alone."""

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
    assert (found - exact).abs().max() < 0.03  # bf16 has 8 bits, the values are below 4


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
