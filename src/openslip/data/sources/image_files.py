"""What sources of listed image files share: checks that the files exist below the root, and their fingerprint."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from openslip.errors import UserError


def inside(root: Path, name: str, listed_in: Path) -> Path:
    """Return the path of a listed image, which may be absolute, but must not lead out of the root.

    Raises:
        UserError: it leads out of the root.
    """
    path = Path(os.path.normpath(root / name))
    if not path.is_relative_to(root):
        raise UserError(f"{listed_in} lists {name}, which is outside {root}; expected paths relative to this folder")
    return path


def need_files(paths: Sequence[Path], listed_in: str) -> None:
    """Check that all listed images exist.

    Args:
        paths: image files.
        listed_in: what lists them, named first in the error.

    Raises:
        UserError: an image is missing.
    """
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(
            f"{listed_in}: {len(missing):,} of {len(paths):,} listed images do not exist, such as {missing[0]}: "
            "download the dataset again, or correct its root"
        )


def fingerprint(root: Path, images: Iterable[tuple[Path, object]]) -> str:
    """Hash path (relative to the root), size in bytes, and label or captions of all images, in their order."""
    digest = hashlib.sha256()
    for path, target in images:
        digest.update(f"{path.relative_to(root)} {path.stat().st_size} {target!r}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
