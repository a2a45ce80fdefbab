"""Provenance of a run's metrics: the command, commit, versions and hardware that computed them."""

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from openslip.data.remote.address import shown

PACKAGES = ("openslip", "torch", "torchvision", "timm", "pytorch-lightning", "hydra-core", "webdataset", "numpy")
DRIVER = Path("/proc/driver/nvidia/version")
CPUS = Path("/proc/cpuinfo")


def environment(started: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file `env.json` holds.

    Args:
        started: content of the file before; empty in a new run. Its dates are kept, all else is of this process.
        facts: what the caller knows about the run, such as the number of its parameters.
    """
    dates = [*started["dates"], now()] if isinstance(started.get("dates"), list) else [now()]
    return {
        "command": command(sys.argv),
        "dates": dates,
        "commit": commit(Path(__file__).parents[1]),
        **facts,
        "versions": versions(),
        "hardware": hardware(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_on_cpu": torch.cpu._is_avx512_bf16_supported(),
    }


def now() -> str:
    """Return the date and time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command(words: Sequence[str]) -> str:
    """Join the words of a command line for a shell, without the credentials that URLs may hold."""
    program, *arguments = words
    redacted = (key + equals + shown(value) for key, equals, value in (word.partition("=") for word in arguments))
    return shlex.join([Path(program).name, *redacted])


def commit(folder: Path) -> str | None:
    """Return the git commit that a folder of source code is at, or None if git does not know the folder.

    The suffix `-dirty` says that tracked files differ from the commit.
    """
    git = ["git", "-C", str(folder), "-c", "core.fsmonitor=false"]  # that setting would start a program
    try:
        # A package that is installed inside a user's own repository is not tracked there.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, timeout=10, check=True
        )
        describe = [*git, "describe", "--always", "--exclude=*", "--dirty", "--abbrev=40"]
        return subprocess.run(describe, capture_output=True, timeout=10, check=True, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str | None]:
    """Return the versions of Python, of the packages that compute, and of CUDA, cuDNN and the driver."""
    installed = {package: installed_version(package) for package in PACKAGES}
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    driver = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text()) if DRIVER.exists() else None
    return {
        "python": platform.python_version(),
        **installed,
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "driver": driver and driver[0],
    }


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """Return this machine's operating system, CPU, usable cores, memory in GB, and GPUs."""
    model = re.search(r"^model name\s*:\s*(.+)$", CPUS.read_text(), re.MULTILINE) if CPUS.exists() else None
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus],
    }
