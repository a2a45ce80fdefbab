"""FLOPs of a model, counted operation by operation, and the peak FLOP rate of a device."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from openslip.objectives.objective import Objective
from openslip.training.sizing.activations import trial

# For each matrix product of the forward pass, the backward pass has two matrix products: one for the gradient of the
# input, and one for the gradient of the weights.
TRAINING_OVER_FORWARD = 3


@torch.no_grad()
def forward_flops(objective: Objective, model: nn.Module, batch: dict[str, Tensor]) -> float:
    """Count the FLOPs of `encode` per sample of this batch; a multiplication and its addition count as two.

    `loss` (heads, similarities) adds less than one per cent, and is not counted because it communicates with other
    ranks. Random states and the statistics of batch norm are restored.
    """
    with (
        trial((model, objective), batch),  # uncompiled, because the counter cannot see into compiled kernels
        sdpa_kernel(SDPBackend.MATH),  # the counter supports fused attention only on some devices
        FlopCounterMode(display=False) as counter,
    ):
        objective.encode(model, batch)
    return counter.get_total_flops() / len(next(iter(batch.values())))


def peak_tflops(device: torch.device, table: dict[str, dict[str, Any]]) -> float | None:
    """Return the peak of a device in TFLOP/s, or None if the table has no entry for it.

    Args:
        device: device to look up.
        table: rows `{tflops: ...}`; the key of a row, such as `A100`, is a word in the device's name.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for word, row in table.items():
        if re.search(rf"\b{re.escape(word)}\b", name):  # whole words, so that A100 does not match A1000
            return float(row["tflops"])
    return None
