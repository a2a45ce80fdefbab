"""Memory: what a process has used at most, what is left, and what an encoded sample holds until the backward pass."""

import resource
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from openslip.objectives.objective import Objective


def peak_memory(device: torch.device) -> int:
    """Bytes used at most so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def available_memory() -> int | None:
    """Bytes that this machine, or the container, can still give; None where the system does not tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = 1024 * int(lines["MemAvailable"].split()[0])
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        available = min(available, int(most) - int(used.read_text()))
    return available


def activation_bytes(objective: Objective, model: nn.Module, batch: dict[str, Tensor]) -> float:
    """What `encode` keeps for the backward pass, per sample of this batch; the weights themselves are not counted."""
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (tensor, storage.nbytes())  # the tensor, so that no later one takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = objective.encode(model, batch)
    for parameter in (*model.parameters(), *objective.parameters()):
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del features
    return sum(size for _, size in kept.values()) / len(next(iter(batch.values())))
