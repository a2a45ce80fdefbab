"""The files of a dataset's folder, as every reader lists them: nothing hidden, images by one list of suffixes."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from openslip.data.image.formats import IMAGE_SUFFIXES
from openslip.errors import UserError

# What macOS puts in archives, and a Synology's thumbnails.
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of a dataset, such as `.ipynb_checkpoints` or `._00000.tar`."""
    return (name.startswith(".") and name not in (".", "..")) or name in SYSTEM_FOLDERS


def is_image(path: Path) -> bool:
    """Whether the suffix is an image's, in upper or lower case."""
    return path.suffix[1:].lower() in IMAGE_SUFFIXES


def visible_files(folder: Path, *, below: bool = False) -> list[Path]:
    """The files in a folder, or in all folders below it as well, in the order of their paths.

    Links to folders are followed; a folder that several of them lead to is read once.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: {error.strerror}; make it readable or remove it") from error

    files: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=below):
        if (real := os.path.realpath(parent)) in seen:  # a link may lead back to where it lies
            folders.clear()
            continue
        seen.add(real)
        files += [Path(parent, name) for name in names if not is_hidden(name)]
        folders[:] = sorted(name for name in folders if below and not is_hidden(name))
    return sorted(files)


def others_line(files: Sequence[Path], root: Path) -> str:
    """A line that says how many files are no images, of which suffixes, and names the first."""
    suffixes = Counter(path.suffix or "no suffix" for path in files)
    kinds = ", ".join(suffix for suffix, _ in suffixes.most_common(5))
    return f"{len(files)} x file that is no image ({kinds}), such as {files[0].relative_to(root)}"
