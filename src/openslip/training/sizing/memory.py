"""Memory of a process: what it has used at most, what is left, and that it keeps none that it has freed."""

import ctypes
import platform
import resource
import sys
from pathlib import Path

import torch

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
# Blocks from this size on are mapped on their own; smaller ones are too few bytes to matter, and many.
MAPPED_BYTES = 1 << 20


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


def return_freed_memory() -> None:
    """Freed tensors go back to the system at once, so that a process resides in what its tensors take and no more.

    glibc would keep blocks of up to 32 MB in a heap whose holes aligned blocks of the same size do not fit: two to four
    times what checkpointed towers hold. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
