"""Estimates the cost of a run before it starts; no data is needed if the config states the number of samples."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openslip.config.build import Parts, build
from openslip.config.check import is_count
from openslip.errors import UserError
from openslip.schedules import LearningRate
from openslip.training.sizing.cost import StepCost, StepMemory
from openslip.training.sizing.flops import TRAINING_OVER_FORWARD
from openslip.training.sizing.layout import GPU_MULTIPLE, REPEATED_IN_BLOCKS, Layout, fastest_layout
from openslip.training.sizing.memory import available_memory
from openslip.training.sizing.micro_batch_size import HEADROOM

TIMED_SHARE = 0.5  # fraction of free memory for the timed batch; the optimizer and the loss need some as well


def number_of_samples(source: dict[str, Any]) -> int:
    """Return the number of samples that the dataset's config states, or else that of its files."""
    if "sources" in source:
        parts = source["sources"].items()
        return sum(round(source["weights"][name] * number_of_samples(part)) for name, part in parts)
    return source.get("expected_samples") or len(build(source, "data.source"))


def number_of_devices(settings: dict[str, Any], device: torch.device) -> int:
    """Return the number of devices over all nodes; `auto` and -1 mean all devices of this machine on each node.

    Args:
        settings: the config's `trainer`.
        device: device of this machine.

    Raises:
        UserError: `devices` is neither a count, a list, `auto` nor -1.
    """
    wanted = settings["devices"]
    present = torch.cuda.device_count() if device.type == "cuda" else 1
    if wanted in ("auto", -1, "-1"):
        return present * settings["num_nodes"]
    if isinstance(wanted, list):
        return len(wanted) * settings["num_nodes"]
    if not is_count(wanted):
        raise UserError(f"trainer.devices={wanted}: expected a number of devices, a list of device indices, or auto")
    return wanted * settings["num_nodes"]


def values(parts: Parts, *, trained: bool) -> int:
    """Count the parameter values of model and objective that are trained, or those that are not."""
    modules = (parts.model, parts.objective)
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad is trained)


def length(config: dict[str, Any], samples: int, steps_per_epoch: int, schedule: LearningRate) -> list[str]:
    """Return lines about steps, epochs and the learning rate."""
    batch, steps = config["global_batch_size"], schedule.max_steps
    return [
        f"{samples:,} samples, {steps_per_epoch:,} steps of {batch:,} per epoch",
        "  a run counts the samples on disk",
        f"{steps:,} steps, {steps / steps_per_epoch:.2f} epochs, {steps * batch:,} samples seen",
        f"  warm-up {schedule.warmup_steps:,} steps, learning rate {schedule.lr:.1e} at most",
    ]


def parameters(parts: Parts) -> list[str]:
    """Return lines with the number of parameters of each part of the model, and of modules that only training needs."""
    model, training = (sum(p.numel() for p in module.parameters()) for module in (parts.model, parts.objective))
    towers = {name: sum(p.numel() for p in module.parameters()) for name, module in parts.model.named_children()}
    lines = {**towers, "projections and scale": model - sum(towers.values())}
    return [
        f"parameters                {model / 1e6:10.2f} M, and {training / 1e6:.2f} M in training only",
        *(f"  {name:24}{count / 1e6:10.2f} M" for name, count in lines.items() if count),
    ]


def costs(cost: StepCost, memory: StepMemory, local: int, device: torch.device, runs: Path) -> list[str]:
    """Return lines about FLOPs per sample, memory for several micro-batch sizes, and disk space for checkpoints."""
    copied = copy_bytes(memory, device)
    parts = "gradients, AdamW's moments and a save's copy" if copied else "gradients and AdamW's moments"
    forward = cost.forward_flops / 1e9
    sizes = sorted({size for size in (1, 16, 64, 256, 1024, local) if size <= local})
    folder = next(path for path in (runs.resolve(), *runs.resolve().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    needed = 3 * memory.checkpoint  # two checkpoints are kept while the next is written
    verdict = "enough" if free > needed else f"TOO LITTLE: {needed / 1e9:.1f} GB are needed; choose another runs_dir="
    return [
        f"FLOPs per sample: forward {forward:.2f} G, training {TRAINING_OVER_FORWARD * forward:.2f} G",
        "  captions that fill the context",
        "",
        f"memory per device: {(memory.fixed + copied) / 1e9:.2f} GB",
        f"  weights, {parts}",
        f"with the pixels of {local:,} samples and a micro-batch's activations, without the loss:",
        *(f"  micro_batch_size={size:<8}{(memory.bytes(size, local) + copied) / 1e9:8.2f} GB" for size in sizes),
        "",
        f"checkpoint {memory.checkpoint / 1e9:.2f} GB, three at a time",
        f"  {free / 1e9:.1f} GB free in {folder}: {verdict}",
    ]


def copy_bytes(memory: StepMemory, device: torch.device) -> int:
    """Return the bytes of device memory that a save needs for its copy of a checkpoint, which is 0 on a GPU."""
    return memory.checkpoint if device.type == "cpu" else 0


def hours(
    cost: StepCost,
    memory: StepMemory,
    steps: int,
    config: dict[str, Any],
    device: torch.device,
    precision: str,
    *,
    splits: bool,
) -> list[str]:
    """Return lines with the hours on this machine, from the timed steps, and on GPUs at the configured utilisation.

    Args:
        cost: measured cost of a step.
        memory: memory of a step as it is configured.
        steps: length of the run in steps.
        config: config of the run.
        device: device of this machine.
        precision: precision of the run, to be shown.
        splits: whether the batch may be split into micro-batches.
    """
    machine = (
        f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name()
    )
    total, local = steps * config["global_batch_size"], config["global_batch_size"]
    utilisation, counts = config["plan"]["utilisation"], config["plan"]["device_counts"]
    split = splits and memory.bytes(local, local) + copy_bytes(memory, device) > (1 - HEADROOM) * room(device)
    seconds = total * cost.seconds * (1 + split / TRAINING_OVER_FORWARD) + steps * cost.update_seconds
    lines = [
        f"this machine, one process ({machine}, {precision})",
        f"  {total / seconds:.2f} samples/s by two steps of {cost.samples}, {amount(seconds / 3600)} for the run"
        f"{', in micro-batches' * split}",
        f"GPUs at {100 * utilisation:.0f} % of their 16-bit peak, each in the fastest layout that fits",
        f"  assumed: micro-batches take one more forward pass, checkpointed blocks {REPEATED_IN_BLOCKS}",
    ]
    for name, row in config["devices"].items():
        label = name
        for count in counts:
            local = config["global_batch_size"] // count
            layout = fastest(cost, memory, local, 1e9 * row["memory_gb"], splits=splits) if local else None
            if layout is None:
                told = "does not fit" if local else "more devices than samples"
            else:
                work = total * layout.passes * cost.forward_flops
                told = f"{amount(work / (count * 1e12 * row['tflops'] * utilisation) / 3600):12}{layout}"
            lines.append(f"  {label:6}{f'{count} x':>6}   {told}")
            label = ""
    return lines


def fastest(cost: StepCost, memory: StepMemory, local: int, room: float, *, splits: bool) -> Layout | None:
    """Return the fastest layout of `local` samples per step in `room` bytes, by the rules of micro_batch_size=auto."""

    def fits(size: int, checkpointed: bool) -> bool:
        activations = cost.by_checkpointed.get(checkpointed)
        if activations is None or (size < local and not splits):
            return False
        return replace(memory, activations=activations).bytes(size, local) <= (1 - HEADROOM) * room

    return fastest_layout(local, fits, GPU_MULTIPLE)


def room(device: torch.device) -> float:
    """Return the bytes of memory of a GPU, or those available on this machine for a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(available_memory() or "inf")


def amount(hours: float) -> str:
    """Format hours with up to three significant digits, or as minutes."""
    if hours < 1 / 60:
        return "< 1 min"
    return f"{60 * hours:.0f} min" if hours < 2 else f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"
