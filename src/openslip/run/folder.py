"""A run's folder: `runs/<name>/`, named by its config, never silently overwritten by another one."""

import hashlib
import json
import platform
import secrets
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import yaml

from openslip.data.remote.address import shown
from openslip.durable import sweep, write_text
from openslip.errors import CheckpointError, UserError
from openslip.run.lock import lock

# What does not change a run's result, so that it neither names a run nor tells two apart; patterns of dotted keys.
NOT_IDENTITY = (
    *("name", "runs_dir", "resume", "logger", "logger.*"),
    *("*num_workers", "shard_cache.*", "*source*.cache.*"),
    *("callbacks.save.*", "callbacks.finite.*", "callbacks.metrics.*", "watchdog.*", "data.bad_sample_budget"),
    *("towers.*.gradient_checkpointing", "towers.*.compile", "trainer.enable_*"),
    # Any split of the global batch makes the same update, so a run may go on with other hardware.
    *("micro_batch_size", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy*"),
    *("devices.*", "plan.*"),
)
# Where data lies names a run, but one that goes on may find it elsewhere: its checkpoint knows the data by its content.
PLACES = ("*.shards", "*.root")


@dataclass(frozen=True)
class Run:
    """Paths of one run.

    Attributes:
        folder: `runs/<name>`.
        state: `new`; `unfinished` where one of the same config lay there; `finished`.
    """

    folder: Path
    state: str

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    def result(self) -> dict[str, Any]:
        """What the finished run measured: {"step": int, "metrics": {...}, "lines": [...]}."""
        return json.loads(self.result_file.read_text())

    def identifier(self) -> str:
        """Of this run among all that ever had its name, for services that keep runs longer than its folder lies."""
        file = self.folder / "id.txt"
        if not file.exists():
            write_text(file, f"{self.folder.name}-{secrets.token_hex(3)}\n")
        return file.read_text().strip()

    def finish(self, result: dict[str, Any]) -> None:
        """Marks the run as finished."""
        write_text(self.result_file, json.dumps(result, indent=1) + "\n")


def run_name(config: dict[str, Any], choices: str) -> str:
    """`name` as given, or the choices of model and data with eight hex digits of the config's hash."""
    if config["name"] is not None:
        name = str(config["name"])
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise UserError(f"name={name}: it becomes a folder, so write it without slashes, e.g. name=first_try")
        return name
    return f"{choices}-{hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]}"


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a run this run, by dotted keys; null is left out, so that a new key that is off names no other run."""
    return {
        key: value
        for key, value in flat(without_secrets(config)).items()
        if value is not None and not any(fnmatchcase(key, pattern) for pattern in NOT_IDENTITY)
    }


def without_secrets(config: Any) -> Any:
    """The config as it may be kept and shown: addresses without user, password and query."""
    if isinstance(config, dict):
        return {key: without_secrets(value) for key, value in config.items()}
    if isinstance(config, list):
        return [without_secrets(value) for value in config]
    return shown(config) if isinstance(config, str) else config


def open_run(config: dict[str, Any], name: str, *, main_process: bool) -> Run:
    """The folder for a config, made or found; only the main process writes, the others look whether it is finished.

    Raises:
        UserError: another config lies there, or `resume=never` and a run does, or another process trains it.
        CheckpointError: the folder cannot be written.
    """
    folder = Path(config["runs_dir"]) / name
    if not main_process:  # all ranks must agree that there is nothing to do; the main process refuses what is wrong
        return Run(folder, "finished" if (folder / "result.json").exists() else "new")
    state = "new"
    if (folder / "config.yaml").exists():
        refuse_other_config(folder, config)
        if config["resume"] == "never":
            raise UserError(f"resume=never, but the run {folder} exists: give another name=, or resume=auto")
        if (folder / "result.json").exists():
            return Run(folder, "finished")
        state = "unfinished"
    try:
        (folder / "arrays").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints").mkdir(exist_ok=True)
        lock(folder)
        if (folder / "result.json").exists():  # whoever held the lock has finished it
            return Run(folder, "finished")
        sweep(folder / "checkpoints")
        sweep(folder)
        write_text(folder / "checkpoints" / "writable", "")  # before an hour of training finds out
        (folder / "checkpoints" / "writable").unlink()
        write_text(folder / "env.json", json.dumps(environment(), indent=1) + "\n")
        write_text(folder / "config.yaml", yaml.safe_dump(without_secrets(config), sort_keys=False))
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror}): mend it, or choose another runs_dir="
        ) from error
    return Run(folder, state)


def refuse_other_config(folder: Path, config: dict[str, Any]) -> None:
    """Names the keys in which the run that lies there differs."""
    there = identity(yaml.safe_load((folder / "config.yaml").read_text()) or {})
    here = identity(config)
    different = [
        key
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and not any(fnmatchcase(key, pattern) for pattern in PLACES)
    ]
    if different:
        shown = "; ".join(f"{key}: there {there.get(key)}, now {here.get(key)}" for key in different[:5])
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise UserError(f"the run {folder} has another config ({shown}{more}): give another name=, or delete it")


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted keys; a list counts as one value."""
    if not isinstance(config, dict):
        return {prefix.removesuffix("."): config}
    return {key: value for name, part in config.items() for key, value in flat(part, f"{prefix}{name}.").items()}


def environment() -> dict[str, Any]:
    """Versions and devices, so that a figure can be traced to what computed it."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_on_cpu": torch.cpu._is_avx512_bf16_supported(),
    }
