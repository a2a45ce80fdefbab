"""The folder of an export: what may be replaced, what a killed export has left, and how a complete one appears.

PyTorch is not imported here, so that the command refuses a folder before it waits for PyTorch.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from openslip.durable import is_running, needed, sync_folder
from openslip.errors import UserError
from openslip.terminal import notice

# A line of every card, by which an export is told from other folders.
MARK = re.compile(r"^Exported by OpenSLIP \S+ in the form `\w+`; files: (?P<names>`.+`)\.$", re.MULTILINE)


def prepare(target: Path, source: str | Path, *, force: bool) -> None:
    """Restore an export that was killed while it was replaced, and refuse a target that may not be written.

    Args:
        target: the folder to write.
        source: what is exported.
        force: whether an earlier export may be replaced.

    Raises:
        UserError: see `refuse_existing`; or the earlier export cannot be restored.
    """
    with needed(target, refusal=UserError, advice="or name another folder"):
        restore(target)
    refuse_existing(target, source, force=force)


def refuse_existing(target: Path, source: str | Path, *, force: bool) -> None:
    """Refuse a target that exists, unless it may be replaced.

    Raises:
        UserError: the target exists and `force` is false; or it is neither an export nor an empty folder, or holds the
            source.
    """
    if not target.exists() and not target.is_symlink():
        return
    if Path(source).exists() and Path(source).resolve().is_relative_to(target.resolve()):
        raise UserError(f"{target} holds the model to export: name another folder")
    if target.is_symlink() or not target.is_dir() or (any(target.iterdir()) and not is_export(target)):
        raise UserError(
            f"{target} exists and does not only hold an earlier export: it is not replaced; name another folder"
        )
    if not force:
        raise UserError(f"{target} exists: name another folder, or replace it with --force")


def is_export(folder: Path) -> bool:
    """Tell whether a folder is an export: it has our model card, and nothing but the files that the card lists."""
    card = folder / "README.md"
    if not card.is_file() or (match := MARK.search(card.read_text("utf-8", "replace"))) is None:
        return False
    names = match["names"].strip("`").split("`, `")
    return all(entry.name in names and not entry.is_dir() for entry in folder.iterdir())


def orphans(target: Path) -> Iterator[tuple[Path, bool]]:
    """Yield each folder that a killed export to this target has left, and whether it is an earlier export."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.(old\.)?tmp")
    for path in sorted(target.parent.glob(".*.tmp")):
        if (match := pattern.fullmatch(path.name)) and not is_running(int(match[1])):
            yield path, match[2] is not None


def restore(target: Path) -> None:
    """Rename an earlier export back to its target, if an export was killed while it replaced this one."""
    for path, is_earlier in orphans(target):
        if is_earlier and not os.path.lexists(target):
            path.rename(target)
            notice(f"{target}: restored, because an export that replaced it was killed")


def remove_orphans(target: Path) -> None:
    """Remove what killed exports to this target have left."""
    for path, _ in orphans(target):
        shutil.rmtree(path, ignore_errors=True)


def publish(temporary: Path, target: Path, *, force: bool) -> None:
    """Rename a complete folder to its target once its files are on the disk; `force` replaces an existing one.

    If the second of the two renames fails, the first is undone. After a kill between them, `restore` undoes it.
    """
    mode = (temporary / "README.md").stat().st_mode  # the library safetensors lets only the owner read its files
    for file in temporary.iterdir():
        file.chmod(mode)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_folder(temporary)
    replaced = target.with_name(f".{target.name}.{os.getpid()}.old.tmp")
    if force and target.exists():
        target.rename(replaced)
    try:
        temporary.rename(target)
    except BaseException:
        if replaced.exists() and not os.path.lexists(target):
            replaced.rename(target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)
