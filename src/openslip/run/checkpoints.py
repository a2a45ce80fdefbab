"""A run's `checkpoints/`: `step-000123.ckpt` with `step-000123.json` beside it, and `last.ckpt`, a link to the newest.

The JSON holds step, size and sha256. It is written once its checkpoint is on the disk, and the link is moved after
that: a checkpoint without JSON was never finished and is ignored. File name, JSON and content must agree on the step,
and the content names the settings of its run.
"""

import hashlib
import json
import re
import reprlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

from openslip.durable import Hashing, durable, point
from openslip.errors import CheckpointError, UserError
from openslip.regular_file import regular_file
from openslip.run.file_sizes import refuse_inflated
from openslip.run.identity import of_another_run
from openslip.terminal import notice

KEPT = 2  # the newest may turn out to be damaged
LINK = "last.ckpt"


class Saved(NamedTuple):
    """A finished checkpoint and what its JSON records; `problem` says why the JSON does not count."""

    path: Path
    step: int  # of its file name
    size: int
    sha256: str
    problem: str | None = None


def file_name(step: int) -> str:
    return f"step-{step:06}.ckpt"


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint or its JSON; None under another name."""
    name = re.fullmatch(r"step-(\d{1,18})", path.stem)
    return int(name[1]) if name else None


def saved(folder: Path) -> list[Saved]:
    """List the finished checkpoints, the highest step first."""
    noted = [recorded(note.with_suffix(".ckpt")) for note in folder.glob("step-*.json") if step_of(note) is not None]
    return sorted(noted, key=lambda checkpoint: checkpoint.step, reverse=True)


def recorded(path: Path) -> Saved:
    """What the JSON beside a checkpoint records of it."""
    note, step = path.with_suffix(".json"), step_of(path)
    try:
        entry = json.loads(regular_file(note).read_bytes())
        noted_step, size, sha256 = entry["step"], entry["size"], entry["sha256"]
        if (type(noted_step), type(size), type(sha256)) != (int, int, str):
            raise TypeError
    except (
        UserError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):  # the checkpoint cannot be trusted either
        return Saved(path, step or 0, 0, "", f"{note.name} cannot be read")
    if step not in (None, noted_step):
        return Saved(path, step or 0, size, sha256, f"{note.name} says step {str(noted_step)[:20]}")
    return Saved(path, noted_step, size, sha256)


def finish(path: Path, step: int, written: Hashing) -> None:
    """Record a completely written checkpoint, point `last.ckpt` at it, and remove the oldest."""
    with durable(path.with_suffix(".json")) as note:
        entry = {"step": step, "size": written.size, "sha256": written.digest.hexdigest()}
        note.write(json.dumps(entry).encode())
    point(path.with_name(LINK), path.name)
    keep = [checkpoint.path.name for checkpoint in saved(path.parent) if checkpoint.problem is None][:KEPT]
    for old in path.parent.glob("step-*.ckpt"):
        # Those above it the run has yet to reach again.
        if old.name not in keep and (old_step := step_of(old)) is not None and old_step < step:
            old.with_suffix(".json").unlink(missing_ok=True)  # first: what is half removed is no longer listed
            old.unlink(missing_ok=True)


def damage(checkpoint: Saved) -> str | None:
    """Validate a checkpoint by reading all of it; returns what is wrong with it, or None."""
    if checkpoint.problem is not None:
        return checkpoint.problem
    try:
        size = checkpoint.path.stat().st_size
        if size != checkpoint.size:
            return f"{size:,} bytes where {checkpoint.size:,} were written"
        with checkpoint.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        return error.strerror or str(error)
    if digest.hexdigest() != checkpoint.sha256:
        return "its content is not what was written (sha256)"
    entry = entry_of(checkpoint.path)
    if entry is not None and entry.get("step") != checkpoint.step:
        return f"its content is of step {reprlib.repr(entry.get('step'))}"
    return None


def entry_of(path: Path) -> dict[str, Any] | None:
    """The entry `openslip` of a checkpoint, without its tensors; None where it cannot be read in this way.

    Whoever reads such a file whole is told why.
    """
    try:
        refuse_inflated(path)
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # whatever a damaged or hostile file provokes
        return None
    entry = content.get("openslip") if isinstance(content, dict) else None
    return entry if isinstance(entry, dict) else {}


def newest_whole(folder: Path) -> Saved:
    """Return the valid checkpoint of the highest step, and warn of damaged ones above it.

    Raises:
        CheckpointError: there is none, or it is of another run than the folder's config.yaml.
    """
    candidates = saved(folder)
    for checkpoint in candidates:
        problem = damage(checkpoint)
        if problem is None:
            if reason := foreign(checkpoint):
                advice = "move it and its .json out of the folder"
                raise CheckpointError(f"checkpoint {checkpoint.path} is of another run ({reason}): {advice}")
            return checkpoint
        notice(f"WARNING: checkpoint {checkpoint.path} is damaged ({problem}); trying the one before it")
    raise CheckpointError(
        f"{folder}: none of its {len(candidates)} checkpoints is valid; restore one from a copy, "
        "or delete the run's folder to start again"
    )


def foreign(checkpoint: Saved) -> str | None:
    """The settings in which a checkpoint's run is not the one in whose folder it lies; None where they agree.

    Checkpoints that do not name their run count as the folder's own.
    """
    return of_another_run((entry_of(checkpoint.path) or {}).get("run"), checkpoint.path.parent.parent)


def forget_after(checkpoint: Saved) -> None:
    """Discard the damaged checkpoints above the one that the run resumes from, so that valid ones are kept longer."""
    for other in saved(checkpoint.path.parent):
        if other.step > checkpoint.step:
            other.path.with_suffix(".json").unlink(missing_ok=True)
    point(checkpoint.path.with_name(LINK), checkpoint.path.name)
