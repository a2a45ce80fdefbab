"""Operations, memory and time of a step against counts made by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openslip.objectives.objective import Objective
from openslip.training.sizing.cost import StepMemory
from openslip.training.sizing.flops import forward_flops, peak_tflops
from openslip.training.sizing.memory import available_memory, peak_memory

SAMPLES, TOKENS, WIDTH, HEADS, HIDDEN = 3, 5, 8, 2, 32


class Layer(nn.Module):
    """Attention and a network, without norms and residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.fc1 = nn.Linear(WIDTH, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, WIDTH)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Encoding(Objective):
    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def encode(self, model: Layer, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        x = batch["image"]
        if self.part == "attention":
            return {"image": model.attend(x)}
        torch.rand(1)  # what draws at random must leave the run's random state alone
        return {"image": model.fc2(F.gelu(model.fc1(x)))}

    def loss(self, model: nn.Module, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        raise NotImplementedError


def batch() -> dict[str, Tensor]:
    return {"image": torch.randn(SAMPLES, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))}


def test_operations_of_attention_are_two_per_multiplication():
    projections = 2 * TOKENS * WIDTH * 3 * WIDTH
    products = 2 * 2 * TOKENS * TOKENS * WIDTH  # scores and sums, all heads together
    assert forward_flops(Encoding("attention"), Layer(), batch()) == projections + products


def test_counting_leaves_the_random_state():
    model = Layer()
    before = torch.get_rng_state()
    assert forward_flops(Encoding("network"), model, batch()) == 2 * 2 * TOKENS * WIDTH * HIDDEN
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_of_a_step_is_the_sum_of_its_parts():
    memory = StepMemory(trained=1000, locked=30, averaged=100, pixels=50, activations=7.0)
    assert memory.fixed == 4 * (4 * 1000 + 30 + 100)
    assert memory.checkpoint == 4 * (3 * 1000 + 30 + 100)
    assert memory.bytes(8, 32) == 4 * 4130 + 4 * 50 * 32 + 7.0 * 8


def test_memory_of_this_process_is_told_in_bytes():
    taken = torch.zeros(32_000_000)  # touched, so it is resident
    assert peak_memory(torch.device("cpu")) > taken.numel() * 4
    left = available_memory()
    assert left is None or 1e6 < left < 1e14


def test_a_cpu_has_no_peak():
    assert peak_tflops(torch.device("cpu"), {"H100": {"tflops": 989}}) is None
