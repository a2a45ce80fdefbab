"""The folder of OpenSLIP's configs, which `--help` reads without Hydra."""

from pathlib import Path


def config_folder() -> Path:
    """Return the folder `configs/` of the installed package, or else of the repository."""
    packaged = Path(__file__).parents[1] / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "configs"
