"""Refuses paths that are not regular files, because opening a named pipe or reading a device may never return."""

import stat
from pathlib import Path

from openslip.errors import UserError

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def regular_file(path: str | Path) -> Path:
    """Return the path, unless it is a named pipe, socket or device; a folder or missing file fails when it is opened.

    Raises:
        UserError: the path is a named pipe, socket or device.
    """
    try:
        kind = _KINDS.get(stat.S_IFMT(Path(path).stat().st_mode))
    except (OSError, ValueError):
        kind = None
    if kind:
        raise UserError(f"{path} is {kind}: expected a regular file")
    return Path(path)


def refuse_pipes(folder: Path) -> None:
    """Refuse a run's folder in which a file of the kinds that runs have is a named pipe, socket or device.

    Raises:
        UserError: there is such a file.
    """
    for suffix in ("yaml", "json", "jsonl", "csv", "txt"):
        for file in folder.glob(f"*.{suffix}"):
            regular_file(file)
