"""A run's folder `runs/<name>/`: named by its config, and never silently overwritten by another run."""

import json
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from openslip.distributed import is_main_process
from openslip.durable import needed, optional, sweep, sync_folder, write_text
from openslip.errors import CheckpointError, UserError
from openslip.regular_file import refuse_pipes
from openslip.run import folder_lock
from openslip.run.checkpoints import saved
from openslip.run.environment import read_seconds, read_starts, with_this_start
from openslip.run.folder_lock import LOCK
from openslip.run.identity import LENGTH, differences, digest, identity, length, read_config, write_config
from openslip.slurm import was_requeued
from openslip.terminal import say

LEFT_BY_A_START = (
    *("arrays", "wandb", "tensorboard", "id.txt", "env.json", "metrics.csv", "micro_batch_size.json"),
    "bad_samples*.jsonl",
)
# The config comes last: a run that is only half deleted can still be recognised as one.
LEFT_BY_A_RUN = ("report.html", "profile", "result*.json", "evaluation-*.json", "evaluations", "config.yaml")


@dataclass(frozen=True)
class Run:
    """The folder and the state of one run."""

    folder: Path  # `runs/<name>`
    state: str  # `new`; `unfinished` if the folder holds a run of the same config; `finished`
    former_length: dict[str, int] | None = None  # `max_steps` and `max_epochs` before the config extended the run

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    def result(self) -> dict[str, Any]:
        """Read the result of a finished run: {"step": int, "metrics": {...}, "lines": [...]}.

        Raises:
            CheckpointError: `result.json` is damaged.
        """
        with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            result = json.loads(self.result_file.read_bytes())
            if [type(result[key]) for key in ("step", "metrics", "lines")] == [int, dict, list]:
                return result
        raise CheckpointError(f"{self.result_file} is damaged: delete it, and the same command writes it again")

    def identifier(self) -> str:
        """Return an id that is unique among all runs of this name, for services that outlive the run's folder.

        The id begins with the folder's name, so a folder that was copied or renamed gets a new id.
        """
        file = self.folder / "id.txt"
        kept = file.read_text(errors="replace").strip() if file.exists() else None
        if kept is not None and re.fullmatch(re.escape(self.folder.name) + "-[0-9a-f]{6}", kept):
            return kept
        new = f"{self.folder.name}-{secrets.token_hex(3)}"
        with needed(file):
            write_text(file, f"{new}\n")
        if kept is not None:
            say(f"{self.folder} was copied or renamed: its id is now {new}, it was {kept[:100]!r}")
        return new

    def begin(self, config: dict[str, Any], facts: Mapping[str, Any]) -> None:
        """Store the config after the first successful step: a failed start reserves no name and keeps an old result.

        Args:
            config: resolved config of the run.
            facts: provenance that the caller knows, stored in `env.json`.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        if not is_main_process():
            return
        record = {
            "starts": with_this_start(read_starts(self.folder), facts),
            "training_seconds": read_seconds(self.folder),
        }
        texts = {"env.json": json.dumps(record, indent=1) + "\n", "config.yaml": write_config(config)}
        try:
            if self.result_file.exists():  # renamed before the stored config makes the run longer
                self.result_file.replace(self.folder / f"result-{self.result()['step']:06}.json")
                sync_folder(self.folder)
            for name, text in texts.items():
                with needed(self.folder / name, advice="or choose another runs_dir="):
                    write_text(self.folder / name, text)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def keep_provenance(self, training_seconds: float | None) -> dict[str, Any]:
        """Write the seconds of training into `env.json`, and return its content, which checkpoints hold too.

        Args:
            training_seconds: seconds of all starts; None if those of an earlier start are not known.
        """
        if not is_main_process():
            return {}
        record = {"starts": read_starts(self.folder), "training_seconds": training_seconds}
        with optional(self.folder / "env.json"):
            write_text(self.folder / "env.json", json.dumps(record, indent=1) + "\n")
        return record

    def abandon(self) -> None:
        """Remove the files of a failed start; a run that has begun or has checkpoints is kept."""
        if is_main_process() and self.state == "new" and has_not_begun(self.folder):
            remove_failed_start(self.folder)
            folder_lock.remove(self.folder)
            with suppress(OSError):  # the folder holds other files
                self.folder.rmdir()

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, which marks the run as finished."""
        with needed(self.result_file, advice="training is complete, and the same command writes its result"):
            write_text(self.result_file, json.dumps(result, indent=1) + "\n")


def result_at(folder: Path, step: int) -> dict[str, Any] | None:
    """Read the result with which a run was finished at a step, before or after it was extended; None without one."""
    for name in ("result.json", f"result-{step:06}.json"):
        with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            result = json.loads((folder / name).read_bytes())
            if result["step"] == step and isinstance(result["metrics"], dict) and isinstance(result["best"], dict):
                return result
    return None


def run_name(config: dict[str, Any], choices: str) -> str:
    """Return the run's name: the config's `name`, or else `choices` with eight hex digits of the config's identity.

    Args:
        config: the run's config.
        choices: readable part of a derived name, such as `MODEL-DATA`.
    """
    if config["name"] is not None:
        name = str(config["name"])
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise UserError(f"name={name}: it becomes a folder, so write it without slashes, e.g. name=first_try")
        return name
    return f"{choices}-{digest(config)}"


def open_run(config: dict[str, Any], name: str) -> Run:
    """Create or find the folder of a config and lock it; only the main process writes, other ranks read the state.

    Args:
        config: the run's config.
        name: name of the folder in `runs_dir`.

    Raises:
        UserError: the folder holds a run of another config or a longer run; `resume=never` and it holds a run;
            `resume=replace`, and it holds a run started without that, or checkpoints without a config; it holds a named
            pipe; or another process trains the run.
        CheckpointError: the folder cannot be written.
    """
    folder = Path(config["runs_dir"]) / name
    if config["name"] is None and not (folder / "config.yaml").exists():
        folder = _named_before(folder, config) or folder
    run = _inspected(folder, config)
    if not is_main_process():  # all ranks read the same state; only the main process raises errors
        return Run(folder, "new") if replaces(config) else run
    if replaces(config):
        _refuse_to_replace(folder)
    elif run.state != "new":
        _refuse_another(folder, config)
        if config["resume"] == "never":
            raise UserError(f"resume=never, but the run {folder} exists: give another name=, or resume=auto")
    if run.state == "finished" and not replaces(config):
        return run
    try:
        folder.mkdir(parents=True, exist_ok=True)
        was_started = is_failed_start(folder)
        folder_lock.hold(folder)
        if replaces(config):
            _refuse_to_replace(folder)
            if (folder / "config.yaml").exists():
                remove(folder, ("checkpoints", *LEFT_BY_A_START, *LEFT_BY_A_RUN))
        run = _inspected(folder, config)  # again: the previous holder of the lock may have finished or extended the run
        _refuse_another(folder, config)
        if run.state == "finished":
            return run
        if was_started and is_failed_start(folder):
            remove_failed_start(folder)
        (folder / "arrays").mkdir(exist_ok=True)
        (folder / "checkpoints").mkdir(exist_ok=True)
        sweep(folder / "checkpoints")
        sweep(folder)
        write_text(folder / "checkpoints" / "writable", "")  # better to fail now than at the first checkpoint
        (folder / "checkpoints" / "writable").unlink()
    except OSError as error:
        with suppress(OSError):
            if folder_lock.is_held(folder):  # else the files may be those of the process that holds the lock
                run.abandon()
            folder.rmdir()  # if it is empty
        raise unwritable(folder, error) from error
    return run


def replaces(config: dict[str, Any]) -> bool:
    """Whether this start deletes an earlier run; a job that SLURM has requeued resumes the run that it began."""
    return config["resume"] == "replace" and not was_requeued()


def has_not_begun(folder: Path) -> bool:
    """Whether no start of the run in a folder has completed a step."""
    return not (folder / "config.yaml").exists() and not saved(folder / "checkpoints")


def is_failed_start(folder: Path) -> bool:
    """Tell whether a folder holds what is left by a start that was killed before the end of its first step.

    The lock is the evidence that the files are a run's; a process that is still starting holds it.
    """
    return (folder / LOCK).exists() and has_not_begun(folder)


def remove_failed_start(folder: Path) -> None:
    """Remove the files that a failed start has left in a folder, except its lock."""
    remove(folder, LEFT_BY_A_START)
    sweep(folder / "checkpoints")
    with suppress(OSError):  # it is absent, or holds files that no start wrote
        (folder / "checkpoints").rmdir()


def remove(folder: Path, patterns: Sequence[str]) -> None:
    """Remove files and folders that a run has written, and nothing else."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _refuse_to_replace(folder: Path) -> None:
    """Refuse to delete a run that was not itself started with `resume=replace`, or checkpoints without a config."""
    stored = read_config(folder / "config.yaml")
    if saved(folder / "checkpoints") if stored is None else stored.get("resume") != "replace":
        raise UserError(
            f"resume=replace would delete the run {folder}, which was started without it: give another name="
        )


def unwritable(folder: Path, error: OSError) -> CheckpointError:
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
    return CheckpointError(
        f"{folder} cannot be written ({error.strerror}; {free / 1e6:,.1f} MB free): repair it, "
        "or choose another runs_dir="
    )


def _named_before(folder: Path, config: dict[str, Any]) -> Path | None:
    """Find the latest folder of the same run whose name was derived from other keys; None if there is none."""
    pattern = f"{escape(folder.name[:-8])}{'[0-9a-f]' * 8}/config.yaml"
    for file in sorted(folder.parent.glob(pattern), key=lambda file: file.stat().st_mtime, reverse=True):
        with suppress(UserError):  # a damaged config counts as another run's
            if identity(read_config(file) or {}) == identity(config):
                return file.parent
    return None


def shorter(run: Run, config: dict[str, Any]) -> list[Path]:
    """List the folders of runs that a config without a name would extend if it gave their name."""
    if config["name"] is not None:
        return []
    found = []
    for file in sorted(run.folder.parent.glob(f"{escape(run.folder.name[:-8])}{'[0-9a-f]' * 8}/config.yaml")):
        with suppress(UserError):  # the config is damaged, or cannot extend this run
            first, second = identity(read_config(file) or config), identity(config)
            changed = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
            if changed and changed <= set(LENGTH):
                _refuse_another(file.parent, config)
                found.append(file.parent)
    return found


def _inspected(folder: Path, config: dict[str, Any]) -> Run:
    """Read the state of the folder; this is safe while the main process is changing it."""
    refuse_pipes(folder)
    # The config is read before the result, because `begin` renames the result before it writes a longer run's config.
    stored = read_config(folder / "config.yaml")
    if stored is None:
        return Run(folder, "new")
    if length(stored) != length(config):
        return Run(folder, "unfinished", former_length=length(stored))
    return Run(folder, "finished" if (folder / "result.json").exists() else "unfinished")


def _refuse_another(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a config that neither resumes nor extends the run in the folder; the error names what differs."""
    stored = read_config(folder / "config.yaml")
    if stored is None:
        return
    if different := differences(stored, config):
        shown = "; ".join(f"{key}: {before} in the run, now {now}" for key, (before, now) in [*different.items()][:5])
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise UserError(f"the run {folder} has another config ({shown}{more}): give another name=, or delete it")
    stored_length, given_length = length(stored), length(config)
    for key in ("max_steps", "max_epochs"):
        before, now = stored_length.get(key), given_length.get(key)
        if now is not None and before is None:
            raise UserError(
                f"the run {folder} has trainer.{key}=null: keep that and raise the other, or give another name="
            )
        if now is not None and before is not None and now < before:
            raise UserError(
                f"the run {folder} has trainer.{key}={before}, and trainer.{key}={now} is shorter: give {before} or "
                "more, or another name="
            )
