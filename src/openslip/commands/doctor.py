"""Report problems of this machine, its runs and their checkpoints; change nothing."""

import argparse
import importlib.metadata
import os
import platform
import resource
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from openslip.progress import progress
from openslip.run.checkpoints import damage, foreign, saved
from openslip.terminal import say

FREE_DISK = 20e9  # bytes: room for three ViT-L checkpoints with optimizer state
SHARED_MEMORY = 1e9  # bytes: room for the decoded batches of a few workers
OPEN_FILES = 4096  # enough for shards, sockets and tensors shared between processes


class Finding(NamedTuple):
    """A line of the report; `advice` says what to do, and is empty if there is no problem."""

    subject: str
    state: str
    advice: str = ""

    def line(self) -> str:
        advice = f": {self.advice}" if self.advice else ""
        return f"{'warning' if self.advice else 'ok':8}{self.subject:15} {self.state}{advice}"


def main(arguments: list[str]) -> int:
    """Print one line per finding, with advice if it is a problem."""
    parser = argparse.ArgumentParser("openslip doctor", description=__doc__)
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs, runs by default"
    )
    options = parser.parse_args(arguments)
    with progress("examining the machine and its runs"):
        findings = examine(options.runs)
    for finding in findings:
        say(finding.line())
    return 0


def examine(runs_folder: Path) -> list[Finding]:
    """Examine the machine and every run in the folder."""
    return [versions(), devices(), *folders(runs_folder), shared_memory(), open_files(), *runs(runs_folder)]


def versions() -> Finding:
    named = {name: importlib.metadata.version(name) for name in ("torch", "pytorch-lightning", "timm")}
    return Finding("versions", f"python {platform.python_version()}, " + ", ".join(map(" ".join, named.items())))


def devices() -> Finding:
    if not torch.cuda.is_available():
        advice = "" if torch.version.cuda is None else "this torch is built for CUDA but finds no GPU: see nvidia-smi"
        return Finding("devices", "CPU only", advice)
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return Finding("devices", ", ".join(f"{gpu.name} {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus))


def folders(runs_folder: Path) -> list[Finding]:
    place = next(folder for folder in (runs_folder, *runs_folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    advice = "" if free > FREE_DISK else "a save needs twice its size free: make room or set runs_dir="
    if not os.access(place, os.W_OK):
        advice = "it cannot be written: set runs_dir="
    temporary = Path(tempfile.gettempdir())
    return [
        Finding("disk", f"{free / 1e9:.1f} GB free in {place}", advice),
        Finding("TMPDIR", f"{temporary}, {shutil.disk_usage(temporary).free / 1e9:.1f} GB free"),
    ]


def shared_memory() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("shared memory", "no /dev/shm")
    free = shutil.disk_usage(place).free
    advice = "data.num_workers > 0 may fail: docker run --shm-size=8g, or data.num_workers=0"
    return Finding("shared memory", f"{free / 1e9:.1f} GB free", advice if free <= SHARED_MEMORY else "")


def open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = "" if soft >= OPEN_FILES else f"raise it: ulimit -n {max(min(hard, 65536), OPEN_FILES)}"
    return Finding("open files", f"{soft} allowed", advice)


def runs(folder: Path) -> list[Finding]:
    """Report the state of each run, and each checkpoint that is damaged or belongs to another run."""
    findings = []
    for run in sorted(path.parent for path in folder.glob("*/config.yaml")):
        checkpoints = saved(run / "checkpoints")
        problems = {}
        for checkpoint in checkpoints:
            if problem := damage(checkpoint):
                problems[checkpoint] = f"is damaged, {problem}"
            elif reason := foreign(checkpoint):
                problems[checkpoint] = f"is of another run, {reason}"
        valid = [checkpoint.step for checkpoint in checkpoints if checkpoint not in problems]
        state = "finished" if (run / "result.json").exists() else "unfinished"
        state += f", valid checkpoints at steps {', '.join(map(str, valid))}" if valid else ", no valid checkpoint"
        lost = problems and not valid
        advice = "it cannot be resumed: restore a checkpoint from a copy, or delete the folder" if lost else ""
        findings.append(Finding(f"run {run.name}", state, advice))
        for checkpoint, problem in problems.items():
            advice = "it is skipped" if problem.startswith("is damaged") else "move it and its .json out of the folder"
            findings.append(Finding(f"run {run.name}", f"{checkpoint.path.name} {problem}", advice))
    return findings
