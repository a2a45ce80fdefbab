"""Checkpoint files: read without executing any code in them, and written atomically."""

import argparse
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from openslip.durable import durable
from openslip.errors import UserError
from openslip.inference.safetensors_file import is_safetensors, read_safetensors, write_safetensors
from openslip.regular_file import regular_file
from openslip.run.checkpoints import LINK, damage, newest_whole, recorded, saved, step_of
from openslip.run.file_sizes import refuse_expanding, refuse_inflated, tensors

T = TypeVar("T")

# Globals that a checkpoint may name, because they hold only numbers and settings. Published checkpoints contain their
# command line as an argparse.Namespace, and their best accuracy as a numpy scalar that was pickled by numpy 1.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_SAFE_GLOBALS: list[Callable | tuple[Callable, str]] = [
    argparse.Namespace,
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDG"},
]

CHUNK = 1 << 22  # bytes of a member that are read at a time
OPTIMIZER = ("optimizer", "optimizer_states")  # the first: the published code, open_clip, DeCLIP; the second: Lightning


class UnwrittenError(UserError):
    """A checkpoint could not be written."""


def checkpoint_file(path: str | Path) -> Path:
    """Return the checkpoint file for a path: the newest intact checkpoint of a run's folder, or the file itself.

    If a JSON file of a run is beside the checkpoint, the checkpoint is compared with it, else with its own checksums. A
    folder that does not belong to a run is returned unchanged.

    Raises:
        UserError: the path does not exist, or the file differs from what its JSON records or from its checksums.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"checkpoint {path}: no such file; give a run's folder (runs/NAME), a checkpoint file or "
            "a name that openslip models lists"
        )
    if path.is_file():
        refuse_damaged(path.resolve())  # `last.ckpt` is a link
        return path
    folder = path / "checkpoints"
    if saved(folder):
        return newest_whole(folder).path
    if not (folder / LINK).exists():
        return path
    refuse_changed(folder / LINK)  # the notes of a run that was copied without them
    return folder / LINK


def refuse_damaged(path: Path) -> None:
    """Refuse a checkpoint that differs from what its JSON records (step, size, SHA-256).

    Without a JSON, the checksums in a file that `torch.save` has written are compared.

    Raises:
        UserError: the file differs from its JSON, or from its own checksums.
    """
    record = recorded(path) if path.with_suffix(".json").is_file() else None
    # With a problem and without a step: a user's file, and an unrelated JSON with the same name.
    if record is None or (record.problem and step_of(path) is None):
        refuse_changed(path)
    elif problem := damage(record):
        raise UserError(f"checkpoint {path} is damaged ({problem}): restore it from a copy, or load another one")


def refuse_changed(path: Path) -> None:
    """Refuse a file of `torch.save` that differs from the checksums in it, which torch does not compare.

    Raises:
        UserError: the file has changed since it was written.
    """
    if member := damaged_member(path):
        raise UserError(
            f"checkpoint {path} is damaged (checksum of {member}): restore it from a copy, or download it again"
        )


def damaged_member(path: Path) -> str | None:
    """Return the first member of a zip file that differs from its CRC-32, or None, also if it is no zip file."""
    try:
        with zipfile.ZipFile(regular_file(path)) as archive, ThreadPoolExecutor() as pool:
            # torch compresses nothing, and can save without checksums, which are then 0.
            members = [part for part in archive.infolist() if part.CRC and part.compress_type == zipfile.ZIP_STORED]
            if sum(part.compress_size for part in members) > path.stat().st_size:
                return None  # they overlap: `read` refuses such a file
            differ = pool.map(lambda part: differs(archive, part), members)
            return next((part.filename for part, changed in zip(members, differ, strict=True) if changed), None)
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):  # `read` says why it cannot be read
        return None


def differs(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    """Whether the bytes of a member differ from what the directory of its file says."""
    try:
        with archive.open(member) as file:
            while file.read(CHUNK):
                pass
    except (zipfile.BadZipFile, EOFError):
        return True
    return False


def read(path: Path, *, with_optimizer: bool = True) -> dict[str, Any]:
    """Read the dict of a checkpoint that `torch.save` or safetensors wrote, on the CPU.

    Args:
        path: the checkpoint file.
        with_optimizer: whether to read the state of an optimizer, which may be two thirds of the file; without it, its
            entry is None.

    Raises:
        UserError: the file is not a checkpoint, it names objects other than tensors, numbers and settings, or its
            content is far larger than the file.
    """
    if path.is_dir():
        raise UserError(f"checkpoint {path}: a folder without checkpoints; give a run's folder or a checkpoint file")
    if is_safetensors(regular_file(path)):
        return read_safetensors(path)
    try:
        refuse_inflated(path)
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            refuse_expanding(path, torch.load(path, map_location="meta", weights_only=True))
            mapped = not with_optimizer and zipfile.is_zipfile(path)  # files from before torch 1.6 cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if mapped and isinstance(content, dict):
            content |= {key: None for key in OPTIMIZER if key in content}
            unmap(content)
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file can raise anything, but none of its code was executed
        raise UserError(f"checkpoint {path}: {_why_unreadable(path, str(error))}") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, not a checkpoint's dict")
    return content


def unmap(content: dict[str, Any]) -> None:
    """Replace all tensors of a mapped file by copies in memory; tensors that shared memory share it afterwards.

    A process that reads a mapped file after it was truncated or rewritten in place would be killed (SIGBUS).
    """
    copies: dict[tuple[int, int], torch.UntypedStorage] = {}  # by address and size
    for _, tensor in tensors(content):
        mapped = tensor.untyped_storage()
        place = mapped.data_ptr(), mapped.nbytes()
        if place not in copies:
            copies[place] = mapped.clone()
        tensor.data = tensor.new_empty(0).set_(copies[place], tensor.storage_offset(), tensor.size(), tensor.stride())


@lru_cache(maxsize=1)
def peek(path: Path) -> dict[str, Any]:
    """Read a checkpoint like `read`, without an optimizer's state; return an empty dict if it cannot be read.

    The result is cached while several formats inspect the same file; `peek.cache_clear()` frees it.
    """
    try:
        return read(path, with_optimizer=False)
    except UserError:
        return {}


def unwrapped(name: str) -> str:
    """Remove the parts that torch.compile (`_orig_mod.`) and data parallelism (`module.`) add to a weight's name."""
    return re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", ""))


def distinct(named: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return weights by name; refuse two with the same name, because a dict would keep only the last one.

    Raises:
        UserError: two weights have the same name.
    """
    weights: dict[str, T] = {}
    for name, weight in named:
        if name in weights:
            raise UserError(
                f"it has two weights that are both named {name[:120]} once prefixes such as module. are removed, and "
                "only one can be loaded: remove the other from the file"
            )
        weights[name] = weight
    return weights


def unwrapped_weights(state: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict by `unwrapped` names; an empty dict if it is no dict.

    Raises:
        UserError: two weights have the same name.
    """
    if not isinstance(state, Mapping):
        return {}
    return distinct((unwrapped(str(name)), value) for name, value in state.items() if isinstance(value, Tensor))


def _why_unreadable(path: Path, message: str) -> str:
    # The message names the first unsafe global. In files older than the zip format, other unsafe globals are not found.
    named = set(re.findall(r"GLOBAL ([\w.]+) (?:whose|was)", message))
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            named |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the file is too damaged to list its globals
        named |= set()
    if named:
        return f"it names {', '.join(sorted(named))}, which could run code: the file is refused, and no code was run"
    size = path.stat().st_size
    return f"cannot be read as a checkpoint ({size:,} bytes; cut off, damaged, or another kind of file)"


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint through a temporary file in the same folder, so that `path` never holds an incomplete one.

    A path that ends in .safetensors selects the safetensors format.

    Raises:
        UnwrittenError: the folder cannot be written or the disk is full; an existing file at `path` is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable(path) as file:
            (write_safetensors if is_safetensors(path) else torch.save)(content, file)
    except (OSError, RuntimeError) as error:
        raise UnwrittenError(
            f"checkpoint {path} could not be written ({why_unwritten(error)}): free space or choose another folder"
        ) from error


def why_unwritten(error: OSError | RuntimeError) -> str:
    """Return the operating system's reason for a failed write; torch hides this reason behind its own error."""
    cause = error if isinstance(error, OSError) else error.__context__
    return str(cause.strerror) if isinstance(cause, OSError) else str(error).splitlines()[0]
