"""Number types that a device cannot have are refused by name."""

import pytest
import torch

from openslip.errors import UserError
from openslip.training.precision import choose_precision, choose_tf32


def test_a_given_precision_is_taken():
    assert choose_precision("32-true", "cpu") == "32-true"
    assert choose_precision("bf16-mixed", "cpu") == "bf16-mixed"


def test_auto_on_a_cpu_is_bf16_only_with_its_instructions(monkeypatch: pytest.MonkeyPatch):
    for supported, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        assert choose_precision("auto", "cpu") == expected


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(UserError, match=r"trainer\.precision=16-mixed needs a GPU.*bf16-mixed"):
        choose_precision("16-mixed", "cpu")


def test_an_unknown_precision_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"trainer\.precision=fp8: expected one of auto, bf16-mixed"):
        choose_precision("fp8", "cpu")


def test_tf32_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choose_tf32(False)
    with pytest.raises(UserError, match="tf32=true"):
        choose_tf32(True)


def test_tf32_sets_products_and_convolutions(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        choose_tf32(True)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
        choose_tf32(False)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
