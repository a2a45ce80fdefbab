"""What the other tests on fake CUDA rest on: waits are found and named, and what does not wait passes."""

from collections.abc import Callable, Iterator

import pytest
import torch
from fake_cuda import DEVICE, FakeCuda, NoWaits, Waits, fake_cuda
from torch import Tensor

CPU = torch.device("cpu")


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as mode:
        yield mode


WAITS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "item": (lambda x: x.sum().item(), "_local_scalar_dense.* reads values"),
    "float": (lambda x: float(x.sum()), "_local_scalar_dense"),
    "branch": (lambda x: 1 if x.sum() > 0 else 2, "reads values on the host"),
    "tolist": (lambda x: x.tolist(), "_local_scalar_dense"),
    "cpu": (lambda x: x.cpu(), "copies from cuda to cpu and waits"),
    "copy to the host": (lambda x: torch.empty(4).copy_(x), "copies from cuda to cpu and waits"),
    "copy to pageable memory": (lambda x: x.to(CPU, non_blocking=True), "memory that is not pinned"),
    "upload": (lambda x: torch.ones(4).to(DEVICE), "copies from cpu to cuda and waits"),
    "upload of pinned memory": (lambda x: torch.ones(4).pin_memory().to(DEVICE), "copies from cpu to cuda and waits"),
    "upload of pageable memory": (lambda x: torch.ones(4).to(DEVICE, non_blocking=True), "memory that is not pinned"),
    "number": (lambda x: torch.tensor(3.0, device=DEVICE), "copies from cpu to cuda and waits"),
    "new number": (lambda x: x.new_tensor(3.0), "copies from cpu to cuda and waits"),
    "list as index": (lambda x: x[[0, 2]], "copies from cpu to cuda"),
    "mask as index": (lambda x: x[x > 0], "counts a mask's true places"),
    "assignment by mask": (lambda x: x.__setitem__(x > 0, torch.ones_like(x)), "counts a mask's true places"),
    "nonzero": (lambda x: x.nonzero(), "nonzero.* depends on values"),
    "masked_select": (lambda x: x.masked_select(x > 0), "masked_select.* depends on values"),
    "unique": (lambda x: x.unique(), "depends on values"),
    "repeat": (lambda x: x.repeat_interleave(x.long()), "repeat_interleave.* depends on values"),
    "equal": (lambda x: torch.equal(x, x + 1), "reads values on the host"),
}


@pytest.mark.parametrize("name", WAITS)
def test_an_operation_that_waits_for_the_device_is_named(cuda: FakeCuda, name: str):
    operation, message = WAITS[name]
    x = torch.ones(4, device=DEVICE)
    with pytest.raises(Waits, match=message), NoWaits():
        operation(x)


PASSES: dict[str, Callable[[Tensor], object]] = {
    "upload": lambda x: torch.ones(4).pin_memory().to(DEVICE, non_blocking=True),
    "download": lambda x: torch.empty(4, pin_memory=True).copy_(x, non_blocking=True),
    "numbers": lambda x: torch.full((3,), 2.0, device=DEVICE) * 3 + x.new_full((), 4.0) + torch.tensor(2.0),
    "fill": lambda x: x.masked_fill(x > 0, 2.0).fill_(3.0),
    "where": lambda x: torch.where(x > 0, x, 1.0),
    "gather": lambda x: x.index_select(0, torch.arange(2, device=DEVICE)),
    "index": lambda x: x[torch.arange(2, device=DEVICE)],
    "on the host": lambda x: torch.ones(4)[torch.ones(4) > 0].tolist(),
}


@pytest.mark.parametrize("name", PASSES)
def test_an_operation_that_does_not_wait_passes(cuda: FakeCuda, name: str):
    x = torch.ones(4, device=DEVICE)
    with NoWaits():
        PASSES[name](x)


def test_values_on_the_cpu_are_real(cuda: FakeCuda):
    assert torch.arange(4).sum().item() == 6
    assert torch.empty(4, pin_memory=True).fill_(2.0).is_pinned()
    assert not torch.ones(4).is_pinned()


def test_tensors_of_two_devices_do_not_meet(cuda: FakeCuda):
    with pytest.raises(RuntimeError, match="found at least two devices"):
        torch.ones(4, device=DEVICE).add(torch.ones(4))


def test_float64_on_the_device_is_found(cuda: FakeCuda):
    x = torch.ones(4, device=DEVICE)
    with pytest.raises(AssertionError, match="makes float64 on the device"), NoWaits():
        x.double()
    with NoWaits():
        torch.ones(4).double()
