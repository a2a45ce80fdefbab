"""One file per command of `openslip`; a file's name is the command, and its docstring says what it is for."""

import ast
from pathlib import Path


def commands(folder: Path = Path(__file__).parent) -> dict[str, str]:
    """Return each command of a folder with the first line of its file's docstring, without importing any."""
    files = sorted(folder.glob("[a-z]*.py"))
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0] for path in files
    }
