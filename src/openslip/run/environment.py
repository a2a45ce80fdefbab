"""Provenance of a run's metrics: the command, commit, versions and hardware that computed them."""

import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from openslip.data.remote.address import shown

PACKAGES = ("torch", "torchvision", "timm", "pytorch-lightning", "hydra-core", "webdataset", "numpy")
DRIVER = Path("/proc/driver/nvidia/version")
CPUS = Path("/proc/cpuinfo")
# An address ends at white space, a quotation mark or a bracket, or at a comma before the next address; braces and
# commas may be part of it, as in s-{0000..0099}.tar?token=SECRET.
ADDRESS = re.compile(r"""\w+://[^\s'"\]]+?(?=$|[\s'"\]]|,\s*\w+://)""")
NESTED = re.compile(r"(\w*(?:key|token|secret|password)\s*:\s*)[^\s,}\]]+", re.IGNORECASE)  # in {token: VALUE}
SECRET = re.compile(r"(key|token|secret|password)$", re.IGNORECASE)  # end of the name of a setting


@cache
def origin() -> dict[str, Any]:
    """Return this process's command, date and commit; called first when the process starts, before files may change."""
    return {
        "command": command(sys.argv),
        "dates": [datetime.now(UTC).isoformat(timespec="seconds")],
        "commit": commit(Path(__file__).parents[1]),
    }


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Read the records of a run's starts from `env.json`; empty if it is absent, damaged or of an older form."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        starts = json.loads((folder / "env.json").read_bytes())["starts"]
        if all(isinstance(start, dict) and isinstance(start["dates"], list) and start["dates"] for start in starts):
            return list(starts)
    return []


def read_seconds(folder: Path) -> float | None:
    """Read the seconds of training from a run's `env.json`; None if it does not state them."""
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        seconds = float(json.loads((folder / "env.json").read_bytes())["training_seconds"])
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def with_this_start(starts: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records of all starts of a run; consecutive starts that differ only in their dates share one.

    Args:
        starts: records of the earlier starts.
        facts: what the caller knows about the run, such as the number of its parameters.
    """
    record = {**origin(), **facts, "versions": versions(), "hardware": hardware()}
    former = [dict(start) for start in starts]
    if former and {**former[-1], "dates": None} == {**record, "dates": None}:
        former[-1]["dates"] = [*former[-1]["dates"], *record["dates"]]
        return former
    return [*former, record]


def command(words: Sequence[str]) -> str:
    """Join the words of a command line for a shell, without passwords, tokens and the credentials in addresses."""
    program = Path(words[0]).name
    arguments = (setting(*word.partition("=")) for word in words[1:])
    return shlex.join(["openslip" if program == "__main__.py" else program, *arguments])


def setting(key: str, equals: str, value: str) -> str:
    """Return a setting of the command line without credentials."""
    if equals and SECRET.search(key) and value not in ("true", "false", "null"):
        return f"{key}=***"
    without_addresses = ADDRESS.sub(lambda address: shown(address[0]), value)
    return key + equals + NESTED.sub(r"\1***", without_addresses)


def commit(folder: Path) -> str | None:
    """Return the git commit that a package is at, or None if git does not track the package.

    The suffix `-dirty` says that tracked files differ from the commit, or that the package has new Python files.
    """
    try:
        # A package that is installed inside a user's own repository is not tracked there.
        git(folder, "ls-files", "--error-unmatch", "__init__.py")
        head = git(folder, "rev-parse", "HEAD")
        new = git(folder, "ls-files", "--others", "--exclude-standard", "*.py")
        changed = git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if new or changed else head


def git(folder: Path, *words: str) -> str:
    """Return the output of a git command that changes nothing in the repository of a folder."""
    # Variables such as GIT_DIR, which git sets for its hooks, name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    options = ["-C", str(folder), "-c", "core.fsmonitor=false"]  # that setting would start a program
    done = subprocess.run(
        ["git", *options, *words],
        capture_output=True,
        check=True,
        text=True,
        timeout=10,
        env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
    )
    return done.stdout.strip()


def versions() -> dict[str, str | None]:
    """Return the versions of Python, of the packages that compute, and of CUDA, cuDNN and the driver."""
    return {
        "python": platform.python_version(),
        **{package: known(lambda package=package: importlib.metadata.version(package)) for package in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": known(lambda: str(torch.backends.cudnn.version())) if torch.backends.cudnn.is_available() else None,
        "driver": known(lambda: re.findall(r"\d+\.\d+(?:\.\d+)?", DRIVER.read_text())[0]),
    }


def hardware() -> dict[str, Any]:
    """Return this machine's operating system, CPU, usable cores, memory in GB, and GPUs."""
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "cpu": known(lambda: re.findall(r"^model name\s*:\s*(.+)$", CPUS.read_text(), re.MULTILINE)[0])
        or platform.machine(),
        "cores": known(lambda: len(os.sched_getaffinity(0))) or os.cpu_count(),
        "memory_gb": known(lambda: round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)),
        "gpus": [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus],
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_on_cpu": known(torch.cpu._is_avx512_bf16_supported),
    }


def known(probe: Callable[[], Any]) -> Any:
    """Return what a probe of the system finds, or None: whatever fails there must not end a training."""
    try:
        return probe()
    except Exception:
        return None
