"""Memory of a process: its peak, the memory still available, and the return of freed memory to the system."""

import ctypes
import platform
import resource
import sys
from pathlib import Path

import torch

M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
# Each block of at least this size gets its own mapping. There are many smaller blocks, but their total size is small.
MAPPED_BYTES = 1 << 20


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far, in bytes: allocated on a GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def available_memory() -> int | None:
    """Return the bytes still available on this machine or in this container; None if the system does not report it."""
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
    """Make malloc return the memory of freed tensors to the system at once, so that only live tensors are resident.

    By default, glibc keeps blocks of up to 32 MB in a heap. Freed blocks leave holes in the heap, and aligned blocks of
    the same size do not fit into these holes. With checkpointed towers, the heap grew to two to four times the size of
    the live tensors. Other C libraries are not changed.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
