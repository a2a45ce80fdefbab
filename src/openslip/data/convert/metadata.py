"""The files that describe a collection: found, and read without running anything."""

import json
from pathlib import Path
from typing import Any

from openslip.errors import UserError


def find(root: Path, metadata: Path | None, *patterns: str) -> Path:
    """The metadata file: as given, or below `root`, or the only one there that matches a pattern.

    Raises:
        UserError: none or several.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; ROOT is the folder of the collection")
    if metadata is not None:
        for path in (metadata, root / metadata):
            if path.exists():
                return path
        raise UserError(f"--metadata {metadata}: no such file, nor {root / metadata}")
    found = sorted({path for pattern in patterns for path in root.glob(pattern)})
    if len(found) == 1:
        return found[0]
    wanted = " or ".join(str(root / pattern) for pattern in patterns)
    if not found:
        raise UserError(f"no metadata file {wanted}: give it with --metadata FILE")
    raise UserError(f"{wanted}: {', '.join(path.name for path in found)}; choose one with --metadata FILE")


def pictures_folder(root: Path, images: Path | None, *names: str) -> Path:
    """The folder of the pictures: as given, or below `root`, or the first of `names` that is there, or `root`.

    Raises:
        UserError: the given one is not there.
    """
    if images is None:
        return next((root / name for name in names if (root / name).is_dir()), root)
    for path in (images, root / images):
        if path.is_dir():
            return path
    raise UserError(f"--images {images}: no such folder, nor {root / images}")


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): download it again") from error
