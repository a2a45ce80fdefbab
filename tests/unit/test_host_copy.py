"""The copy of a training state: what is written from it, what it shares with the original, which memory it takes."""

import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from openslip.training import host_copy as module
from openslip.training.host_copy import HostCopy, Staging


def written(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture
def state() -> dict[str, Any]:
    """What a checkpoint holds: tied weights, optimizer state, views, several number types, plain values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.Linear(40, 30))
    model[2].weight = nn.Parameter(model.get_parameter("0.weight").detach().T)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(5, 30)).sum().backward()
    optimizer.step()
    base = torch.arange(100.0)
    return {
        **{"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]},
        **{"row": base[10:20], "column": base.view(10, 10)[:, 3], "wide": torch.ones(1).expand(5)},
        **{"empty": torch.empty(0), "half": torch.ones(3, dtype=torch.bfloat16), "step": torch.tensor(3)},
        **{
            "random": torch.get_rng_state(),
            "parameter": nn.Parameter(torch.ones(3)),
            "settings": {"lr": 0.1, "names": ("a", [1])},
        },
    }


def test_a_file_of_the_copy_is_to_the_byte_one_of_the_original(state: dict[str, Any]):
    host_copy = HostCopy()
    for _ in range(2):  # the second time in memory that holds the first
        assert written(host_copy.of(state)) == written(state)
        state["state_dict"]["0.weight"].mul_(2)


def test_what_changes_after_the_copy_does_not_change_it(state: dict[str, Any]):
    before = written(state)
    copied = HostCopy().of(state)
    for tensor in (*state["state_dict"].values(), *state["optimizer_states"][0]["state"][0].values(), state["row"]):
        tensor.add_(1)
    state["optimizer_states"][0]["param_groups"][0]["lr"] = 5.0
    state["settings"]["names"][1].append(2)
    del state["optimizer_states"][0]["state"][1]
    assert written(copied) == before


def test_memory_is_used_again_and_made_anew_where_sizes_changed(state: dict[str, Any]):
    host_copy = HostCopy()
    host_copy.of(state)
    first = [memory.data_ptr() for memory in host_copy.memory]
    host_copy.of(state)
    assert [memory.data_ptr() for memory in host_copy.memory] == first
    state["row"] = torch.zeros(1000)
    larger = host_copy.of(state)
    assert torch.equal(larger["row"], state["row"])
    assert len(host_copy.memory) == len(first) + 1  # the column keeps the storage that both had


class Gpu(TorchFunctionMode):
    """Stands in for a GPU whose memory is the host's: copies without waiting are made when it is waited for."""

    def __init__(self, *, can_page_lock: bool) -> None:
        super().__init__()
        self.can_page_lock = can_page_lock
        self.pinned_memory: list[int] = []  # bytes of each block
        self.copies: list[Callable[[], Any]] = []
        self.waits = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.pop("pin_memory", False):
            self.pinned_memory.append(args[0])
            if not self.can_page_lock:
                raise RuntimeError("CUDA error: out of memory")
        if func is Tensor.copy_ and kwargs.pop("non_blocking", False):
            self.copies.append(lambda: func(*args))
            return args[0]
        return func(*args, **kwargs)

    def synchronize(self) -> None:
        self.waits += 1
        for copy in self.copies:
            copy()
        self.copies.clear()


@pytest.fixture(params=[True, False], ids=["pinned", "refused"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    with Gpu(can_page_lock=request.param) as mode:
        monkeypatch.setattr(module, "is_on_gpu", lambda tensor: True)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(synchronize=mode.synchronize))
        yield mode


def total_bytes(host_copy: HostCopy) -> int:
    return sum(memory.nbytes for memory in host_copy.memory)


@pytest.mark.parametrize("size", [64, 1024, 1 << 20], ids=["split", "mixed", "all at once"])
def test_a_copy_of_a_gpu_passes_through_one_block_and_is_to_the_byte_the_original(
    size: int, state: dict[str, Any], gpu: Gpu
):
    host_copy = HostCopy()
    host_copy.staging = Staging(size)
    for _ in range(2):
        assert written(host_copy.of(state)) == written(state)
        state["state_dict"]["0.weight"].mul_(2)
    assert gpu.pinned_memory == [size]
    fewest = -(-total_bytes(host_copy) // size)
    assert 2 * fewest <= gpu.waits
    if size > total_bytes(host_copy):
        assert gpu.waits == 2


def test_a_file_of_the_copy_holds_no_more_than_the_original(state: dict[str, Any], gpu: Gpu):
    copied = HostCopy().of(state)
    assert copied["step"].untyped_storage().nbytes() == state["step"].untyped_storage().nbytes()
    assert copied["row"].untyped_storage().nbytes() == copied["column"].untyped_storage().nbytes() == 400


def test_a_cpu_takes_no_memory_for_staging(state: dict[str, Any]):
    host_copy = HostCopy()
    host_copy.of(state)
    assert host_copy.staging.memory is None
