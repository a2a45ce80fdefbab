"""Floating-point operations of a model, counted where they happen, and the peak of the device they run on."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from openslip.objectives.objective import Objective
from openslip.training.sizing.activations import trial

# The backward pass makes two products for each of the forward pass: for the input's and for the weights' gradient.
TRAINING_OVER_FORWARD = 3


@torch.no_grad()
def forward_flops(objective: Objective, model: nn.Module, batch: dict[str, Tensor]) -> float:
    """Of `encode` per sample of this batch, two per multiplication and addition.

    What `loss` adds (heads, contrastive sums) is under one per cent, and left out because it waits for other ranks.
    Random states and the statistics of batch norm are left as they were.
    """
    with (
        trial((model, objective), batch),  # compiled kernels could not be looked into
        sdpa_kernel(SDPBackend.MATH),  # the counter knows plain products on every device, fused kernels on some
        FlopCounterMode(display=False) as counter,
    ):
        objective.encode(model, batch)
    return counter.get_total_flops() / len(next(iter(batch.values())))


def peak_tflops(device: torch.device, table: dict[str, dict[str, Any]]) -> float | None:
    """The table's peak of the device, whose name holds one of the table's words; None where none does."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for word, row in table.items():
        if re.search(rf"\b{re.escape(word)}\b", name):  # an A1000 is no A100
            return float(row["tflops"])
    return None
