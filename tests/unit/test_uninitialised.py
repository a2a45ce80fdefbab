"""Models that are read from a file: nothing is drawn for their parameters, and tensors are taken without a copy."""

import copy
from pathlib import Path

import pytest
import torch
from stored_models import ARCHITECTURE, write_checkpoint
from timm.layers.weight_init import trunc_normal_
from torch import nn

from openslip.inference.architecture import build_model, load_weights
from openslip.inference.load import load
from openslip.inference.uninitialised import uninitialised


class Drawing(nn.Module):
    """Parameters and buffers of every kind that constructors fill."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.embedding = nn.Linear(8, 8), nn.Embedding(8, 8)
        self.truncated = nn.Parameter(torch.full((8,), 7.0))
        trunc_normal_(self.truncated, std=0.02)
        self.doubled = nn.Parameter(torch.ones(8))
        nn.init.constant_(self.doubled, 3.0)
        with torch.no_grad():
            self.doubled.mul_(2)
        self.register_buffer("noise", torch.zeros(8).normal_(), persistent=False)


def test_no_parameter_is_drawn_and_all_else_is_computed():
    torch.manual_seed(0)
    noise = torch.zeros(8).normal_()
    torch.manual_seed(0)
    with uninitialised():
        model = Drawing()
    assert torch.equal(model.truncated, torch.full((8,), 7.0))
    assert torch.equal(model.doubled, torch.full((8,), 6.0))
    assert torch.equal(model.get_buffer("noise"), noise)  # the first numbers of the generator: none was drawn before
    torch.manual_seed(0)
    assert not torch.equal(Drawing().truncated, torch.full((8,), 7.0))


def test_a_checkpoint_of_constants_is_read_as_constants(tmp_path: Path):
    path = write_checkpoint(tmp_path / "model.pt")
    content = torch.load(path, weights_only=True)
    for weight in content["state_dict"].values():
        weight.fill_(0.25)
    torch.save(content, path)
    for tensor in load(path).model.state_dict().values():
        assert torch.equal(tensor, torch.full_like(tensor, 0.25))


def test_weights_are_taken_without_a_copy_unless_they_share_memory():
    model = build_model(ARCHITECTURE)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_weights(model, weights)
    assert all(tensor.data_ptr() == weights[name].data_ptr() for name, tensor in model.state_dict().items())
    assert all(isinstance(weight, nn.Parameter) and weight.requires_grad for weight in model.parameters())

    name, other = "image_tower.trunk.norm.weight", "image_tower.trunk.norm.bias"
    for key, value in (
        (name, torch.ones(1000)[: len(weights[name])]),  # part of a larger storage
        (name, weights[other]),  # shared with another weight
        (name, torch.ones(2 * len(weights[name]))[::2]),  # not contiguous
        (name, torch.ones_like(weights[name], dtype=torch.float16)),  # another dtype
    ):
        given = {**weights, key: value}
        load_weights(model, given)
        taken = model.state_dict()[name]
        assert torch.equal(taken, value.float())
        assert taken.dtype == torch.float32
        assert taken.data_ptr() != value.data_ptr()
        assert taken.untyped_storage().nbytes() == taken.nbytes


def test_tied_parameters_of_a_model_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

    model = Tied()
    load_weights(model, copy.deepcopy(model.state_dict()))
    assert model.first.weight is model.second.weight


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_loaded_does_not_depend_on_the_seed(seed: int, tmp_path: Path):
    path = write_checkpoint(tmp_path / "model.pt")
    expected = {k.removeprefix("model."): v for k, v in torch.load(path, weights_only=True)["state_dict"].items()}
    torch.manual_seed(seed)
    model = load(path).model
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
