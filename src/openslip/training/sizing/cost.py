"""What a training step costs: operations, memory and time, measured on a small batch."""

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

# Large enough that the passes, and not their overhead, are timed; a few seconds on a core, tenths of one on a GPU.
TIMED_FLOPS = {"cpu": 0.7e12, "cuda": 20e12}


@dataclass(frozen=True)
class StepCost:
    """Measured operations, memory and time of a step."""

    samples: int  # in the batch that was timed
    forward_flops: float  # per sample
    activation_bytes: float  # per sample, in the run's precision
    by_checkpointed: dict[bool, float]  # the same without checkpointed blocks and with them, where towers can do both
    seconds: float  # per sample, forward and backward
    update_seconds: float  # per step, the optimizer


@dataclass(frozen=True)
class StepMemory:
    """The memory of a step by its parts; all but the activations are float32."""

    trained: int  # number of values that are trained
    locked: int  # number of those that are not
    averaged: int  # number of EMA weights
    pixels: int  # of a sample's views, times three channels
    activations: float  # bytes per sample at most, forward and backward

    @property
    def fixed(self) -> int:
        """Bytes of weights, gradients, AdamW's two moments and the EMA weights."""
        return 4 * (4 * self.trained + self.locked + self.averaged)

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: all but the gradients."""
        return 4 * (3 * self.trained + self.locked + self.averaged)

    def bytes(self, micro_batch_size: int, local_batch_size: int) -> float:
        """At most, for a micro-batch and a device's part of the global batch."""
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
    """Counts operations and memory of few samples, then times two steps that train the model on noise.

    Args:
        model: what is trained; it is moved to the device.
        objective: set up for the model.
        make_batch: a batch of a size, on the CPU.
        largest: batch worth timing, since the run has no larger one.
        make_optimizer: parameter groups to optimizer.
        precision: of the run.
        device: where it runs.
        room: bytes of the device for the samples of the batch that is timed; two are timed in any case.
    """

    def on_device(size: int) -> dict[str, Tensor]:
        return {key: value.to(device) for key, value in make_batch(size).items()}

    model, objective = model.to(device).train(), objective.to(device).train()
    flops = forward_flops(objective, model, on_device(min(SIZES)))  # batch norm takes no single sample
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
        """Seconds of the passes over the batch, and of the update."""
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
        step()  # chooses kernels
    first, second = step(), step()
    # The first update of all makes the optimizer's state, which no other one does.
    return StepCost(samples, flops, activations, by_checkpointed, (first[0] + second[0]) / 2 / samples, second[1])


def finished(device: torch.device) -> float:
    """The time when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
