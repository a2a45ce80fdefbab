"""Find the metadata files and image folders of a dataset, and read JSON files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openslip.data.listing import is_hidden
from openslip.errors import UserError
from openslip.regular_file import regular_file


def find(root: Path, metadata: Path | None, *patterns: str) -> Path:
    """Find the metadata file.

    Args:
        root: folder of the dataset.
        metadata: path as given, or relative to `root`; None searches for the only match of `patterns`.
        patterns: glob patterns below `root`.
    """
    if not regular_file(root).is_dir():
        raise UserError(f"{root}: no such folder; ROOT is the folder of the dataset")
    if metadata is not None:
        for path in (metadata, root / metadata):
            if path.exists():
                return regular_file(path)
        raise UserError(f"--metadata {metadata}: no such file, nor {root / metadata}")
    matches = visible(path for pattern in patterns for path in root.glob(pattern))
    if len(matches) == 1:
        return regular_file(matches[0])
    wanted = " or ".join(str(root / pattern) for pattern in patterns)
    if not matches:
        raise UserError(f"no metadata file {wanted}: give it with --metadata FILE")
    raise UserError(f"{wanted}: {', '.join(path.name for path in matches)}; choose one with --metadata FILE")


def visible(paths: Iterable[Path]) -> list[Path]:
    """Sort paths, without repetitions and hidden files: `glob` also finds files such as macOS's `._captions.csv`."""
    return sorted({path for path in paths if not is_hidden(path.name)})


def images_folder(root: Path, images: Path | None, *names: str) -> Path:
    """Find the folder of the images.

    Args:
        root: folder of the dataset.
        images: path as given, or relative to `root`; None selects the first existing folder of `names`, else `root`.
        names: usual names of the folder below `root`.
    """
    if images is None:
        return next((root / name for name in names if (root / name).is_dir()), root)
    for path in (images, root / images):
        if path.is_dir():
            return path
    raise UserError(f"--images {images}: no such folder, nor {root / images}")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}), as JSON has to be: save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): download it again") from error
