"""Keep of a checkpoint only what inference needs."""

from collections.abc import Collection
from pathlib import Path

from openslip.errors import UserError
from openslip.inference.files import checkpoint_file
from openslip.inference.formats.openslip import write
from openslip.inference.load import load


def strip(
    source: str | Path,
    target: str | Path,
    *,
    allow: Collection[str] = (),
    format: str | None = None,  # noqa: A002
) -> tuple[int, int]:
    """Write the model of a checkpoint with its tokenizer and transform; returns the sizes before and after in bytes."""
    source, target = checkpoint_file(source), Path(target)
    if target.resolve() == source.resolve():
        raise UserError(f"strip: {target} is the checkpoint itself; name another file for the stripped one")
    write(load(source, allow=allow, format=format), target)
    return source.stat().st_size, target.stat().st_size
