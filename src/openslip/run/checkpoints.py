"""Checkpoints of a run: `step-000123.ckpt` with `step-000123.json` beside it, and the link `last.ckpt` to the newest.

The link `best.ckpt` leads to the one with the best result of an evaluation, which is kept as long as the link is.
The JSON records step, size and sha256. It is written after its checkpoint is on disk, and the link is updated after
that: a checkpoint without a JSON was never finished and is ignored. File name, JSON and content must agree on the step,
and the content includes the settings of its run.
"""

import hashlib
import json
import os
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

KEPT = 2  # checkpoints kept per run: the newest may turn out to be damaged
LINK = "last.ckpt"
BEST = "best.ckpt"


class Saved(NamedTuple):
    """A finished checkpoint and the values in its JSON; `problem` says why the JSON cannot be trusted."""

    path: Path
    step: int  # from the file name if it has one, else from the JSON
    size: int
    sha256: str
    problem: str | None = None


def file_name(step: int) -> str:
    return f"step-{step:06}.ckpt"


def step_of(path: Path) -> int | None:
    """Return the step in the file name of a checkpoint or its JSON; None if the name has another form."""
    name = re.fullmatch(r"step-(\d{1,18})", path.stem)
    return int(name[1]) if name else None


def saved(folder: Path) -> list[Saved]:
    """List the finished checkpoints of a folder, highest step first."""
    noted = [recorded(note.with_suffix(".ckpt")) for note in folder.glob("step-*.json") if step_of(note) is not None]
    return sorted(noted, key=lambda checkpoint: checkpoint.step, reverse=True)


def recorded(path: Path) -> Saved:
    """Read the JSON beside a checkpoint."""
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
    """Write the JSON of a complete checkpoint, point `last.ckpt` at it, and remove checkpoints of lower steps.

    The `KEPT` checkpoints of the highest steps, and the one that `best.ckpt` points at, are not removed.

    Args:
        path: the checkpoint file.
        step: the checkpoint's step.
        written: size and hash of the bytes that were written.
    """
    with durable(path.with_suffix(".json")) as note:
        entry = {"step": step, "size": written.size, "sha256": written.digest.hexdigest()}
        note.write(json.dumps(entry).encode())
    point(path.with_name(LINK), path.name)
    keep = [checkpoint.path.name for checkpoint in saved(path.parent) if checkpoint.problem is None][:KEPT]
    keep += [os.readlink(best)] if (best := path.with_name(BEST)).is_symlink() else []
    for old in path.parent.glob("step-*.ckpt"):
        # Checkpoints of higher steps are kept: the run resumed from an earlier step and has not reached them again.
        if old.name not in keep and (old_step := step_of(old)) is not None and old_step < step:
            old.with_suffix(".json").unlink(missing_ok=True)  # first, so that an interrupted removal leaves none listed
            old.unlink(missing_ok=True)


def point_best(folder: Path, step: int | None) -> None:
    """Point `best.ckpt` at the checkpoint of a step; if the step is None or has no checkpoint, remove the link."""
    link = folder / BEST
    if any(checkpoint.step == step and checkpoint.problem is None for checkpoint in saved(folder)):
        assert step is not None
        point(link, file_name(step))
    elif link.is_symlink():
        link.unlink()


def damage(checkpoint: Saved) -> str | None:
    """Validate a checkpoint by reading all of it; return what is wrong with it, or None if it is intact."""
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
    """Read the entry `openslip` of a checkpoint without loading tensors; None if the file cannot be read this way.

    The reason is not reported here: loading the checkpoint raises it.
    """
    try:
        refuse_inflated(path)
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # a damaged or hostile file can raise anything
        return None
    entry = content.get("openslip") if isinstance(content, dict) else None
    return entry if isinstance(entry, dict) else {}


def newest_whole(folder: Path) -> Saved:
    """Return the valid checkpoint of the highest step, and warn of damaged ones of higher steps.

    Raises:
        CheckpointError: there is no valid checkpoint, or it belongs to another run than the folder's config.yaml.
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
    """Describe the settings in which a checkpoint differs from the run whose folder it is in; None if they agree.

    A checkpoint without the settings of its run is assumed to belong to the folder's run.
    """
    return of_another_run((entry_of(checkpoint.path) or {}).get("run"), checkpoint.path.parent.parent)


def forget_after(checkpoint: Saved) -> None:
    """Remove the JSONs of damaged checkpoints after the one resumed from: only listed ones count towards `KEPT`.

    `last.ckpt` then points at the checkpoint resumed from.
    """
    for other in saved(checkpoint.path.parent):
        if other.step > checkpoint.step:
            other.path.with_suffix(".json").unlink(missing_ok=True)
    point(checkpoint.path.with_name(LINK), checkpoint.path.name)
