"""Files of tensors that later commands reuse: written whole, checked when read, and removed when there are too many.

A file is `KEY.safetensors`, and KEY is the hash of all that the tensors depend on. Beside the tensors it holds
`sha256`, the checksum of all of them (uint8 [32]). A file that is damaged in any way is ignored and written again.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import UInt8
from safetensors.torch import load, save
from torch import Tensor

from openslip.durable import durable, optional
from openslip.regular_file import regular_file


def read(path: Path) -> dict[str, Tensor] | None:
    """Read the tensors of a file; return None if it is missing or damaged."""
    try:
        tensors = load(regular_file(path).read_bytes())
        if not torch.equal(tensors.pop("sha256"), checksum(tensors)):
            return None
    except Exception:  # a damaged file can raise anything; it is replaced
        return None
    with suppress(OSError):  # the folder may be read-only for this user
        path.touch()  # the files that were used last are kept
    return tensors


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file whole or not at all; if that fails, print a warning."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with optional(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable(path) as file:
            file.write(save({**kept, "sha256": checksum(kept)}))


def remove_oldest(folder: Path, *, most_files: float = float("inf"), most_bytes: float = float("inf")) -> None:
    """Remove the files that were not used for the longest time, until the others are few and small enough.

    Args:
        folder: folder of the files.
        most_files: number of files that are kept.
        most_bytes: size of all files that are kept; the newest one is kept in any case.
    """
    files: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.safetensors"):
        with suppress(FileNotFoundError):  # another process may have removed it
            status = os.stat(path)
            files.append((status.st_mtime, status.st_size, path))
    total, count = sum(size for _, size, _ in files), len(files)
    for _, size, path in sorted(files)[:-1]:
        if total <= most_bytes and count <= most_files:
            break
        with suppress(OSError):
            path.unlink(missing_ok=True)
        total, count = total - size, count - 1


def checksum(tensors: Mapping[str, Tensor]) -> UInt8[Tensor, " 32"]:
    """Hash name, type, shape and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(as_bytes(tensors[name]))
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, copied only if it is not contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
