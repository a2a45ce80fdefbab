"""The copy of a training state: what is written from it, what it shares with the original, which memory it takes."""

import io
from typing import Any

import pytest
import torch
from torch import nn

from openslip.training.host_copy import HostCopy


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
