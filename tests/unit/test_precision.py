"""Number types that a device cannot have are refused by name."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn

from openslip.errors import UserError
from openslip.objectives.objective import Objective
from openslip.training.microbatch import loss_in_micro_batches
from openslip.training.precision import autocast, choose_precision, choose_tf32


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


def test_sums_of_16_bit_products_stay_in_float32_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    names = ("allow_bf16_reduced_precision_reduction", "allow_fp16_reduced_precision_reduction")
    matmul, tf32 = torch.backends.cuda.matmul, torch.backends.cudnn.allow_tf32
    before = {name: getattr(matmul, name) for name in names}
    try:
        for name in names:
            setattr(matmul, name, True)
        choose_tf32(False)
        assert all(getattr(matmul, name) for name in names)  # of no concern without a GPU
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        choose_tf32(False)
        assert not any(getattr(matmul, name) for name in names)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        for name, value in before.items():
            setattr(matmul, name, value)


class Sum(Objective):
    """The sum of a linear layer's outputs, whose gradient is the sum of the inputs."""

    def encode(self, model: nn.Module, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {"y": model(batch["x"])}

    def loss(self, model: nn.Module, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {"loss": features["y"].sum()}


STEP: dict[str, Callable[[], AbstractContextManager]] = {
    "lightning": lambda: MixedPrecision("bf16-mixed", "cpu").forward_context(),
    "ours": lambda: autocast(torch.device("cpu"), "bf16-mixed"),
    "cached": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=True),
}


@pytest.mark.parametrize(("name", "exact"), [("lightning", True), ("ours", True), ("cached", False)])
def test_gradients_of_micro_batches_add_up_in_float32(name: str, exact: bool):
    model = nn.Linear(5, 1, bias=False)
    x = torch.randint(1, 256, (64, 5), generator=torch.Generator().manual_seed(0)).float()  # 8 bits each, 14 in all
    with STEP[name]():
        loss = loss_in_micro_batches(Sum(), model, {"x": x}, [1] * 64)["loss"]
    loss.backward()
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, x.sum(dim=0, keepdim=True)) is exact
