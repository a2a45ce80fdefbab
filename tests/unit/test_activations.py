"""What a sample holds at most, against counts made by hand and against the memory that a process resides in."""

import sys

import pytest
import torch
import torch.nn.functional as F
from forked import printed_by
from marks import slow
from small_models import small_batch, small_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openslip.objectives.objective import Objective
from openslip.training.precision import autocast
from openslip.training.sizing.activations import activation_bytes, differentiate

TOKENS, WIDTH, HIDDEN = 5, 8, 32
X, H = 4 * TOKENS * WIDTH, 4 * TOKENS * HIDDEN


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Encoding(Objective):
    """Networks one after the other, each checkpointed or not."""

    def __init__(self, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed

    def encode(self, model: nn.Sequential, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        x = batch["image"]
        for network in model:
            x = checkpoint(network, x, use_reentrant=False) if self.checkpointed else network(x)
        return {"image": x}

    def loss(self, model: nn.Module, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        raise NotImplementedError


def networks(count: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Network() for _ in range(count)))


def batch(samples: int = 3) -> dict[str, Tensor]:
    return {"image": torch.randn(samples, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))}


def test_a_network_holds_both_sides_of_the_activation_a_gradient_and_its_output():
    assert activation_bytes(Encoding(), networks(1), batch()) == 3 * H + X


def test_a_second_network_adds_what_it_keeps():
    # Both sides of the first one's activation, and its output beside the second one's.
    assert activation_bytes(Encoding(), networks(2), batch()) == 3 * H + X + 2 * H + X


def test_checkpointed_networks_hold_their_outputs_and_what_one_of_them_does():
    count = 6
    assert activation_bytes(Encoding(checkpointed=True), networks(count), batch()) == 3 * H + count * X


def test_a_locked_network_holds_what_its_forward_pass_does():
    assert activation_bytes(Encoding(), networks(1).requires_grad_(False), batch()) == 2 * H


def test_in_16_bits_the_copies_of_the_weights_are_no_samples():
    with autocast(torch.device("cpu"), "bf16-mixed"):
        held = activation_bytes(Encoding(), networks(1), batch())
    # As in float32, and the 16-bit copy of the input and the output's gradient.
    assert held == (3 * H + X + X + X) / 2


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_any_batch_says_the_same(samples: int):
    assert activation_bytes(Encoding(), networks(1), batch(samples)) == 3 * H + X


def test_measuring_leaves_weights_and_gradients():
    model = networks(2)
    before = [parameter.clone() for parameter in model.parameters()]
    activation_bytes(Encoding(), model, batch())
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None


def test_where_nothing_is_trained_there_is_no_backward_pass():
    model, objective = small_model("simclr")
    model.requires_grad_(False)
    differentiate(objective, model, small_batch(2))
    assert activation_bytes(objective, model, small_batch(3)) > 0


RESIDENT = """
import sys
from pathlib import Path

import torch

from openslip.models.image_encoder import ImageEncoder
from openslip.models.timm_tower import TimmTower
from openslip.objectives.simclr import SimCLR
from openslip.training.precision import autocast
from openslip.training.sizing.activations import activation_bytes, differentiate
from openslip.training.sizing.memory import return_freed_memory

torch.set_num_threads(1)
return_freed_memory()
arguments = {"depth": 6, "patch_size": 16, "embed_dim": 192, "num_heads": 3}
tower = TimmTower(name="vit_tiny_patch16_224", image_size=224, arguments=arguments)
if sys.argv[1] == "checkpointed":
    tower.checkpoint_blocks()
model, objective = ImageEncoder(image_tower=tower), SimCLR(head_hidden=8, head_output=8, ssl_temperature=0.1)
batch = {view: torch.randn(24, 3, 224, 224) for view in ("aug1", "aug2")}


def peak(samples):
    Path("/proc/self/clear_refs").write_text("5")
    differentiate(objective, model, {view: column[:samples] for view, column in batch.items()})
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


counted = activation_bytes(objective, model, batch)
peak(8)  # the first pass of all loads libraries
print(counted / ((peak(24) - peak(8)) / 16))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of resident memory is read and reset in /proc")
@pytest.mark.parametrize("blocks", ["plain", slow("checkpointed")])
def test_a_sample_of_a_vision_transformer_takes_the_memory_that_is_counted(blocks: str):
    assert 0.8 < float(printed_by(RESIDENT, blocks)) < 1.3
