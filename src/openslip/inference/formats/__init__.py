"""Checkpoint formats, one file each; `names` finds every file in this folder.

Contract of each file:
- `detect(path: Path) -> bool` tells whether a file or folder has the format, and never raises an error.
- `read(path: Path, choices: Choices) -> Bundle` loads the model on the CPU, executes no code of the file, and names
  missing and unexpected keys in its errors. What neither the file nor its project determines is in the choices: an
  activation is never guessed, and the number of heads is derived from the width only if all models that the project has
  published follow one rule (`choices.heads`).
- `write(bundle, path)` is optional and writes a file of the format.
- `objective_weights(path) -> dict[str, Tensor]` is optional: the weights of the objective, such as an SSL head, by our
  names.
"""

import importlib
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """List the names of all formats, which are their file names."""
    return sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))


def load(name: str) -> ModuleType:
    """Import the module of a format."""
    return importlib.import_module(f"openslip.inference.formats.{name}")
