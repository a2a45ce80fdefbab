"""Other layouts of image-caption datasets to tar shards: `descriptions()` names them, `convert.convert` does it."""

import ast
from pathlib import Path


def descriptions() -> dict[str, str]:
    """Every layout by the name of its file, with the first line of its docstring; imports none of them."""
    files = sorted((Path(__file__).parent / "layouts").glob("[a-z]*.py"))
    return {
        file.stem: (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0] for file in files
    }
