"""Write files that hold only what inference needs of a checkpoint: weights, tokenizer, transform and provenance."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from openslip.durable import is_running, sync_folder
from openslip.errors import UserError
from openslip.inference.files import UnwrittenError, checkpoint_file
from openslip.inference.formats.openslip import write
from openslip.inference.load import find_format, load, local_file
from openslip.inference.rounding import rounded_to


class Stripped(NamedTuple):
    """What `strip` has written.

    Attributes:
        before: bytes of the source.
        after: bytes of the stripped file.
        dtype: dtype of its weights.
    """

    before: int
    after: int
    dtype: str


def strip(
    source: str | Path,
    target: str | Path,
    *,
    allow: Collection[str] = (),
    format: str | None = None,  # noqa: A002
    activation: str | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
    dtype: str | None = None,
    keep_head: bool = False,
    force: bool = False,
) -> Stripped:
    """Write the model of a checkpoint with its tokenizer and transform; return both file sizes and the dtype.

    The target appears only once it is complete and has been loaded.

    Args:
        source: a run's folder, a checkpoint, or the name of a published checkpoint.
        target: the file to write; the ending .safetensors selects that format.
        allow: import paths of your own model and tokenizer classes that the checkpoint may name.
        format: name of the source's format, or import path of a module that reads it; None detects it.
        activation: as for `load`.
        image_heads: as for `load`.
        text_heads: as for `load`.
        dtype: `float32`, `float16` or `bfloat16`; the weights are stored in this dtype, and loaded as float32. None is
            the first of float16 and bfloat16 that changes no weight, else float32.
        keep_head: also keep the weights of the objective, such as SLIP's SSL head.
        force: whether an existing file is replaced; it is kept if the new one is not written.

    Raises:
        UserError: the target exists, `load` refuses the source, or a weight overflows `dtype`.
        UnwrittenError: the target cannot be written.
    """
    target = Path(target)
    if target.is_file() and not force and not Path(source).exists():  # before a published name is downloaded
        raise UserError(f"{target} exists: add --force to replace it, or name another file")
    source = checkpoint_file(local_file(source))
    if target.resolve() == source.resolve():
        raise UserError(f"strip: {target} is the checkpoint itself; name another file for the stripped one")
    if source.is_dir() and target.exists() and target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"strip: {target} is a part of the checkpoint; name another file for the stripped one")
    if target.is_file() and not force:
        raise UserError(f"{target} exists: add --force to replace it, or name another file")
    with whole_file(target) as temporary:
        # Before `load`, which reuses the content that `peek` has cached, and then clears the cache.
        objective = objective_weights(source, format) if keep_head else {}
        bundle = load(
            source, allow=allow, format=format, activation=activation, image_heads=image_heads, text_heads=text_heads
        )
        dtype = dtype or rounded_to(bundle.model.state_dict() | objective) or "float32"
        write(bundle, temporary, getattr(torch, dtype), objective)
        del bundle, objective  # memory for the next line
        load(temporary, allow=allow)  # a file that cannot be loaded must not replace the target
    return Stripped(size_of(source), target.stat().st_size, dtype)


def size_of(source: Path) -> int:
    """Return the bytes of a checkpoint: a file, or all files of a folder."""
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces the target if the context ends without an error.

    Raises:
        UnwrittenError: the target is a folder, or its folder cannot be created.
    """
    if target.is_dir():
        raise UnwrittenError(f"{target} is a folder: name a file in it, such as {target / 'model.safetensors'}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwrittenError(f"{target} could not be written ({error.strerror}): choose another folder") from error
    remove_orphans(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def remove_orphans(target: Path) -> None:
    """Remove the temporary files for `target` of processes that were killed, and no other file."""
    ours = rf"\.{re.escape(target.name)}\.(\d+)\.tmp{re.escape(target.suffix)}"
    pattern = re.compile(rf"{ours}|\.{ours}\.\d+\.tmp")  # the second: temporary files of `durable`
    for path in target.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not is_running(int(match[1] or match[2])):
            path.unlink(missing_ok=True)


def objective_weights(source: Path, format: str | None) -> dict[str, Tensor]:  # noqa: A002
    """Return the weights of the objective that a checkpoint holds, by our names.

    Raises:
        UserError: the checkpoint holds none, or the module of its format does not read them.
    """
    read = getattr(find_format(source, format), "objective_weights", None)
    weights = read(source) if read else {}
    if not weights:
        raise UserError(f"checkpoint {source} holds no weights of an objective: leave out --keep-head")
    return {name: weight.clone() for name, weight in weights.items()}  # copies, so that all other weights can be freed
