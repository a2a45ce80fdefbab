"""Only regular files are opened: a named pipe would be waited for without end, and a device may never end."""

import stat
from pathlib import Path

from openslip.errors import UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def regular_file(path: str | Path, *, or_folder: bool = False) -> Path:
    """The path, unless it is a folder, named pipe, socket or device; what is not there is left to whoever opens it.

    Raises:
        UserError: it is one of these.
    """
    try:
        kind = _KINDS.get(stat.S_IFMT(Path(path).stat().st_mode))
    except (OSError, ValueError):
        kind = None
    if kind and not (or_folder and kind == "a folder"):
        raise UserError(f"{path} is {kind}: expected a regular file")
    return Path(path)
