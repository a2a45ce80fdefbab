"""Conversion of image-caption datasets to tar shards: `convert.convert`, for each layout in `descriptions()`."""

import ast
from pathlib import Path

SAMPLES_PER_SHARD = 10_000  # the default of img2dataset


def descriptions() -> dict[str, str]:
    """Map each layout (the name of its file) to the first line of its docstring, without importing any of them."""
    files = sorted((Path(__file__).parent / "layouts").glob("[a-z]*.py"))
    return {
        file.stem: (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0] for file in files
    }
