"""Models of other libraries, run by these libraries; one file each, and its name is the prefix of an address.

`openslip.load("NAME:ADDRESS")` calls `read(address, choices)` of the file NAME.py. Contract of each file:
- `read(address: str, choices: Choices) -> Bundle` wraps the library's own model, tokenizer and image transform, and
  raises MissingPackage with the install command if the library is not installed.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """List the names of all libraries, which are their file names."""
    return sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))


def find(path: str | Path) -> tuple[ModuleType, str] | None:
    """Return the library and the address of a path such as `hf:ORG/NAME`, or None for a path of a file or folder."""
    prefix, colon, address = str(path).partition(":")
    if not colon or prefix not in names() or os.path.exists(path):  # pathlib raises for names that are too long
        return None
    return importlib.import_module(f"{__name__}.{prefix}"), address
