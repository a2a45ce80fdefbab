"""Cost of a training step in operations, memory and time, measured on a small batch."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openslip.objectives.objective import Objective
from openslip.optim import param_groups
from openslip.training.precision import autocast
from openslip.training.sizing.activations import SIZES, activation_bytes
from openslip.training.sizing.flops import TRAINING_OVER_FORWARD, forward_flops
from openslip.training.sizing.layout import applied, are_checkpointed, block_settings

# FLOPs of the timed batch: enough that overhead does not matter. They take seconds on a CPU core, and tenths of a
# second on a GPU.
TIMED_FLOPS = {"cpu": 0.7e12, "cuda": 20e12}


@dataclass(frozen=True)
class StepCost:
    """Measured operations, memory and time of a training step."""

    samples: int  # in the batch that was timed
    forward_flops: float  # per sample
    activation_bytes: float  # per sample, in the run's precision
    by_checkpointed: dict[bool, float]  # activation_bytes without and with checkpointed blocks, if towers support both
    seconds: float  # per sample, forward and backward pass
    update_seconds: float  # per step, for the optimizer's update


@dataclass(frozen=True)
class StepMemory:
    """The memory of a training step by its parts; all parts except the activations are float32."""

    trained: int  # number of trained values
    locked: int  # number of values that are not trained
    averaged: int  # number of EMA weights
    pixels: int  # values per sample in the batch, as float32; almost all are pixel values, 3 per pixel
    activations: float  # peak bytes per sample, forward and backward

    @property
    def fixed(self) -> int:
        """Bytes of weights, gradients, AdamW's two moments and the EMA weights."""
        return 4 * (4 * self.trained + self.locked + self.averaged)

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint, which holds all parts of `fixed` except the gradients."""
        return 4 * (3 * self.trained + self.locked + self.averaged)

    def bytes(self, micro_batch_size: int, local_batch_size: int) -> float:
        """Return the peak bytes of a step for a micro-batch size and a device's number of samples per step."""
        return self.fixed + 4 * self.pixels * local_batch_size + self.activations * micro_batch_size


def measure_step(
    model: nn.Module,
    objective: Objective,
    make_batch: Callable[[int], dict[str, Tensor]],
    largest: int,
    make_optimizer: Callable[[list[dict]], torch.optim.Optimizer],
    precision: str,
    device: torch.device,
    room: float,
) -> StepCost:
    """Count operations and memory on a few samples, then time two training steps.

    Args:
        model: model to be trained; it is moved to the device, and its weights change.
        objective: objective whose `setup` has been called with the model.
        make_batch: function from a number of samples to a batch on the CPU.
        largest: largest number of samples in the timed step; the run has no larger batch.
        make_optimizer: function from parameter groups to an optimizer.
        precision: the run's precision, one of `bf16-mixed`, `16-mixed` and `32-true`.
        device: device to measure on.
        room: bytes of device memory for the timed samples; at least two samples are timed if `largest` allows it.
    """

    def on_device(size: int) -> dict[str, Tensor]:
        return {key: value.to(device) for key, value in make_batch(size).items()}

    model, objective = model.to(device).train(), objective.to(device).train()
    flops = forward_flops(objective, model, on_device(min(SIZES)))  # batch norm needs two samples
    by_checkpointed = {}
    for checkpointed, towers in block_settings(model).items():
        with applied(towers), autocast(device, precision):
            by_checkpointed[checkpointed] = activation_bytes(objective, model, on_device(max(SIZES)))
    activations = by_checkpointed[are_checkpointed(model)]
    budget = TIMED_FLOPS[device.type] / (TRAINING_OVER_FORWARD * flops)
    samples = int(min(max(min(budget, room / max(activations, 1.0)), 2), largest))
    batch = on_device(samples)
    optimizer = make_optimizer(param_groups([model, objective], weight_decay=0.0))

    def step() -> tuple[float, float]:
        """Train one step; return the seconds of its forward and backward pass, and the seconds of its update."""
        started = finished(device)
        with autocast(device, precision):
            loss = objective.terms(model, objective.encode(model, batch))["loss"]
        loss.backward()
        passed = finished(device)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.after_step(model)
        return passed - started, finished(device) - passed

    if device.type == "cuda":
        step()  # the first step also selects kernels
    first, second = step(), step()
    # Only the second update is timed, because the very first one also creates the optimizer's state.
    return StepCost(samples, flops, activations, by_checkpointed, (first[0] + second[0]) / 2 / samples, second[1])


def finished(device: torch.device) -> float:
    """Synchronise with the device and return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
