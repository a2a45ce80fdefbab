"""One file per format of checkpoints; a new one is found by its name.

Contract: `detect(path: Path) -> bool` tells by content whether this file or folder is of the format, and never raises;
`read(path: Path, *, allow) -> Bundle` reads it on the CPU, executes nothing of it, and refuses missing and unexpected
keys by name; `write(bundle, path)`, where it makes sense, writes it.
"""

import importlib
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """Every format by the name of its file."""
    return sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))


def load(name: str) -> ModuleType:
    """The module of a format."""
    return importlib.import_module(f"openslip.inference.formats.{name}")
