"""Folders of configs, which `--help` reads without Hydra."""

from collections.abc import Sequence
from pathlib import Path


def config_folder() -> Path:
    """Return the folder `configs/` of the installed package, or else of the repository."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "configs"


def config_dirs(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split a command line into the folders given by `--config-dir` and all other words."""
    folders, others = [], []
    words = iter(arguments)
    for word in words:
        if word == "--config-dir":
            folders.append(Path(next(words, "")).resolve())
        elif word.startswith("--config-dir="):
            folders.append(Path(word.partition("=")[2]).resolve())
        else:
            others.append(word)
    return folders, others
