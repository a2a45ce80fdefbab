"""Examines this machine, its runs and their checkpoints, and says what to do about problems; nothing is changed."""

import importlib
import os
import resource
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from openslip import __version__
from openslip.config.catalogue import datasets
from openslip.config.folder import config_folder
from openslip.data.index.outdated import complete, index_folders, why_unused
from openslip.data.remote.files import cache_folder
from openslip.errors import UserError, first_line
from openslip.locks import is_locked
from openslip.run import environment
from openslip.run.checkpoints import damage, foreign, saved
from openslip.run.folder import is_failed_start
from openslip.run.folder_lock import LOCK
from openslip.run.identity import read_config
from openslip.training.c_compiler import why_no_launcher

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


def examine(runs_folder: Path) -> list[Finding]:
    """Examine the machine, every run in the folder, and the indexes of their shards and of the known datasets.

    Args:
        runs_folder: folder of the runs, or of a single one.
    """
    machine = [versions(), torchvision(), devices(), compiler(), *folders(runs_folder), shared_memory(), open_files()]
    return [*machine, *runs(runs_folder), *failed_starts(runs_folder), *indexes(runs_folder)]


def versions() -> Finding:
    named = {"openslip": __version__, **environment.versions()}
    return Finding("versions", ", ".join(f"{name} {version}" for name, version in named.items() if version))


def torchvision() -> Finding:
    """Load torchvision, which fails if it was built for another torch; timm, and so every model, needs it."""
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # it raises several types, RuntimeError and ImportError among them
        advice = "install torch and torchvision together: pip install --upgrade torch torchvision, or as in the README"
        return Finding("torchvision", f"does not load with torch {torch.__version__} ({first_line(error)})", advice)
    return Finding("torchvision", f"loads with torch {torch.__version__}")


def devices() -> Finding:
    if not torch.cuda.is_available():
        advice = "" if torch.version.cuda is None else "this torch is built for CUDA but finds no GPU: see nvidia-smi"
        return Finding("devices", "CPU only", advice)
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return Finding("devices", ", ".join(f"{gpu.name} {gpu.total_memory / 1e9:.0f} GB" for gpu in gpus))


def compiler() -> Finding:
    missing = why_no_launcher()
    if missing is None:
        return Finding("C compiler", "found")
    fact, _, fix = missing.partition(": ")
    # Only GPUs compile by default.
    return Finding("C compiler", fact, f"{fix}, for compile=auto on this GPU" if torch.cuda.is_available() else "")


def folders(runs_folder: Path) -> list[Finding]:
    place = next(folder for folder in (runs_folder, *runs_folder.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    advice = "" if free > FREE_DISK else "a save needs twice its size free: make room or set runs_dir="
    if not os.access(place, os.W_OK):
        advice = "it cannot be written: set runs_dir="
    temporary = Path(tempfile.gettempdir())  # may be another file system: durable writes use the target's folder
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


def holding(name: str, folder: Path) -> list[Path]:
    """List the folders of runs that hold a file of this name: the folder itself, or else those in it."""
    return [folder] if (folder / name).exists() else sorted(path.parent for path in folder.glob(f"*/{name}"))


def runs(folder: Path) -> list[Finding]:
    """Report the state of each run, and each checkpoint that is damaged or belongs to another run."""
    findings = []
    for run in holding("config.yaml", folder):
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


def indexes(runs_folder: Path) -> list[Finding]:
    """Report each index that no start will use, beside the shards of datasets and runs and in the user's cache."""
    places = [place for dataset in datasets([config_folder()]) for place in dataset.places]
    places += [place for run in holding("config.yaml", runs_folder) for place in shards_of(run / "config.yaml")]
    cache = cache_folder("index")
    found = [*index_folders(map(Path, places)), *(complete(cache) if cache else ())]
    unused = {folder: problem for folder in found if (problem := why_unused(folder))}
    advice = "the next start scans the shards again: delete this folder"
    warnings = [Finding("index", f"{folder} {problem}", advice) for folder, problem in unused.items()]
    return [Finding("indexes", f"{len(found) - len(unused)} up to date"), *warnings]


def shards_of(config: Path) -> list[str]:
    """Return the shards that the config of a run names; none if the file cannot be read."""
    try:
        source = (read_config(config) or {})["data"]["source"]
        named = source.get("shards") or []
    except (UserError, KeyError, TypeError, AttributeError):
        return []
    return [named] if isinstance(named, str) else [place for place in named if isinstance(place, str)]


def failed_starts(folder: Path) -> list[Finding]:
    """Report the folders in which no run has begun: its start has failed, or has not reached its first step yet."""
    findings = []
    for run in filter(is_failed_start, holding(LOCK, folder)):
        if is_locked(run / LOCK):
            findings.append(Finding(f"run {run.name}", "is starting"))
        else:
            advice = "the same command removes its files and starts again; or delete the folder"
            findings.append(Finding(f"run {run.name}", "failed before the end of its first step", advice))
    return findings
