"""List the files of a dataset folder: every reader skips the same hidden files and knows the same image suffixes."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from openslip.data.image.formats import IMAGE_SUFFIXES
from openslip.errors import UserError

# Archives of macOS have the first. A Synology NAS keeps thumbnails and deleted files in the next two, Windows deleted
# files and settings in the two after them. The last is at the root of a Linux disk.
SYSTEM_FOLDERS = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is skipped because of its name, such as `.ipynb_checkpoints` or `._00000.tar`."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in SYSTEM_FOLDERS


def is_image(path: Path) -> bool:
    """Whether the path has an image suffix, in upper or lower case."""
    return path.suffix[1:].lower() in IMAGE_SUFFIXES


def visible_files(folder: Path, *, below: bool = False) -> list[Path]:
    """List the files that are not hidden in a folder, sorted by path.

    Links to folders are followed; a folder that is reached in several ways is read once.

    Args:
        folder: where to look.
        below: whether to list the files of all folders below it, too.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}; make it readable or remove it") from error

    files: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=below):
        if (real := os.path.realpath(parent)) in seen:  # a link may point to a folder that contains it
            folders.clear()
            continue
        seen.add(real)
        files += [Path(parent, name) for name in names if not is_hidden(name)]
        folders[:] = sorted(name for name in folders if below and not is_hidden(name))
    return sorted(files)


def others_line(files: Sequence[Path], root: Path) -> str:
    """Describe the files that are not images in one line: their number, their suffixes and the first of them."""
    suffixes = Counter(path.suffix or "no suffix" for path in files)
    kinds = ", ".join(suffix for suffix, _ in suffixes.most_common(5))
    return f"{len(files)} x file that is no image ({kinds}), such as {files[0].relative_to(root)}"
