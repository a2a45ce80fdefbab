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


def names(group: str, folders: Sequence[Path]) -> list[str]:
    """Return the options of a config group; models are also composed from methods and sizes."""
    places = [folder / group for folder in folders]
    found = {file.relative_to(place).with_suffix("").as_posix() for place in places for file in place.glob("**/*.yaml")}
    if group in ("model", "data", "optim"):
        found = {name for name in found if "/" not in name}  # model/tower/, data/source/ ... are groups of their own
    if group == "model":
        sizes = [size for size in names("size", folders) if not {"/", "_"} & set(size)]
        found |= {f"{method}_{size}" for method in names("method", folders) for size in sizes}
    return sorted(found)
