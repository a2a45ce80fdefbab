"""A run's `checkpoints/`: `step-000123.ckpt` with `step-000123.json` beside it, and `last.ckpt`, a link to the newest.

The JSON holds step, size and sha256. It is written once its checkpoint is on the disk, and the link is moved after
that: a checkpoint without JSON was never finished and is ignored.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

from openslip.durable import Hashing, durable, point
from openslip.errors import CheckpointError
from openslip.terminal import notice

KEPT = 2  # the newest may turn out to be damaged
LINK = "last.ckpt"


class Saved(NamedTuple):
    """A finished checkpoint and what its JSON records."""

    path: Path
    step: int
    size: int
    sha256: str


def file_name(step: int) -> str:
    return f"step-{step:06}.ckpt"


def saved(folder: Path) -> list[Saved]:
    """List the finished checkpoints, the highest step first."""
    checkpoints = []
    for note in folder.glob("step-*.json"):
        try:
            entry = json.loads(note.read_text())
            checkpoints.append(Saved(note.with_suffix(".ckpt"), entry["step"], entry["size"], entry["sha256"]))
        except (OSError, ValueError, KeyError, TypeError):  # damaged: the checkpoint cannot be trusted either
            checkpoints.append(Saved(note.with_suffix(".ckpt"), _step(note), -1, ""))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step, reverse=True)


def finish(path: Path, step: int, written: Hashing) -> None:
    """Record a completely written checkpoint, point `last.ckpt` at it, and remove the oldest."""
    with durable(path.with_suffix(".json")) as note:
        entry = {"step": step, "size": written.size, "sha256": written.digest.hexdigest()}
        note.write(json.dumps(entry).encode())
    point(path.with_name(LINK), path.name)
    keep = [checkpoint.path.name for checkpoint in saved(path.parent)[:KEPT]]
    for old in path.parent.glob("step-*.ckpt"):
        if old.name not in keep:
            old.with_suffix(".json").unlink(missing_ok=True)  # first: what is half removed is no longer listed
            old.unlink(missing_ok=True)


def damage(checkpoint: Saved) -> str | None:
    """Validate a checkpoint by reading all of it; returns what is wrong with it, or None."""
    try:
        if checkpoint.size < 0:
            return f"{checkpoint.path.with_suffix('.json').name} cannot be read"
        size = checkpoint.path.stat().st_size
        if size != checkpoint.size:
            return f"{size:,} bytes where {checkpoint.size:,} were written"
        with checkpoint.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        return error.strerror or str(error)
    return None if digest.hexdigest() == checkpoint.sha256 else "its content is not what was written (sha256)"


def newest_whole(folder: Path) -> Saved:
    """Return the valid checkpoint of the highest step, and warn of damaged ones above it.

    Raises:
        CheckpointError: there is none.
    """
    candidates = saved(folder)
    for checkpoint in candidates:
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        notice(f"WARNING: checkpoint {checkpoint.path} is damaged ({problem}); trying the one before it")
    raise CheckpointError(
        f"{folder}: none of its {len(candidates)} checkpoints is valid; restore one from a copy, "
        "or delete the run's folder to start again"
    )


def forget_after(checkpoint: Saved) -> None:
    """Discard the damaged checkpoints above the one that the run resumes from, so that valid ones are kept longer."""
    for other in saved(checkpoint.path.parent):
        if other.step > checkpoint.step:
            other.path.with_suffix(".json").unlink(missing_ok=True)
    point(checkpoint.path.with_name(LINK), checkpoint.path.name)


def _step(note: Path) -> int:
    digits = re.sub(r"\D", "", note.stem)
    return int(digits) if digits else -1
