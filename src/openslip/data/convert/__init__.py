"""Conversion of image-caption datasets to tar shards: `convert.convert`, for each layout in `descriptions()`."""

import ast
import difflib
from pathlib import Path

from openslip.errors import UserError

SAMPLES_PER_SHARD = 10_000  # the default of img2dataset


def descriptions() -> dict[str, str]:
    """Map each layout (the name of its file) to the first line of its docstring, without importing any of them."""
    files = sorted((Path(__file__).parent / "layouts").glob("[a-z]*.py"))
    return {
        file.stem: (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0] for file in files
    }


def layout_file(layout: str) -> Path:
    """Return the file of a layout.

    Raises:
        UserError: there is no such layout.
    """
    known = descriptions()
    if layout not in known:
        near = difflib.get_close_matches(layout, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        raise UserError(f"layout {layout} does not exist; {hint}")
    return Path(__file__).parent / "layouts" / f"{layout}.py"


def keyword_parameters(layout: str) -> tuple[dict[str, str], str]:
    """Return the annotations of the keyword parameters of a layout's `records`, and its docstring.

    They are read from the file as text, because importing it takes seconds.
    """
    module = ast.parse(layout_file(layout).read_text("utf-8"))
    (records,) = [part for part in module.body if isinstance(part, ast.FunctionDef) and part.name == "records"]
    written = {part.arg: ast.unparse(part.annotation) if part.annotation else "" for part in records.args.kwonlyargs}
    return written, ast.get_docstring(records) or ""
