"""Only regular files are opened: a named pipe would be waited for without end, and a device may never end."""

import stat
from pathlib import Path

from openslip.errors import UserError

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def regular_file(path: str | Path) -> Path:
    """The path, unless it is a named pipe, socket or device; a folder, or nothing, is an error of whoever opens it.

    Raises:
        UserError: it is one of these.
    """
    try:
        kind = _KINDS.get(stat.S_IFMT(Path(path).stat().st_mode))
    except (OSError, ValueError):
        kind = None
    if kind:
        raise UserError(f"{path} is {kind}: expected a regular file")
    return Path(path)
