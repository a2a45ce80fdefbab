"""Compare the sizes that a checkpoint file declares with the size of the file, before memory is allocated."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from openslip.errors import UserError

SLACK = 64 << 20  # bytes that any file may expand by: an expanded constant is stored as a single element
EXPANSION = 4  # tensors may have this many times the file's size, because tied weights are stored once


def refuse_inflated(path: Path) -> None:
    """Refuse a zip file that unpacks to more than its size: torch stores the members uncompressed.

    Raises:
        UserError: members are compressed or overlap, or the pickle could allocate any amount of memory.
        zipfile.BadZipFile: the file is truncated or damaged.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # written before torch 1.6
            return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size, declared = path.stat().st_size, sum(member.file_size for member in members)
        if declared > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UserError(
                f"checkpoint {path}: its members unpack to {declared / 1e6:,.1f} MB from {size / 1e6:,.1f} MB; "
                "torch.save compresses nothing, so it is refused: save it with torch again"
            )
        for member in members:  # torch's unpickler allows bytearray, and `bytearray(10**10)` allocates 10 GB
            if member.filename.endswith("/data.pkl"):
                with archive.open(member) as pickled:
                    pickled._expected_crc = None  # pyright: ignore  # torch can save without checksums
                    if b"\nbytearray\n" in pickled.read():
                        raise UserError(f"checkpoint {path}: it names bytearray, which no checkpoint needs: refused")


def refuse_expanding(path: Path, content: Any) -> None:
    """Refuse a checkpoint whose tensors are far larger than its file.

    Args:
        path: the checkpoint file.
        content: its content, loaded onto the device `meta`, so that no tensor has been allocated.

    Raises:
        UserError: the tensors are far larger than the file.
    """
    size, sizes = path.stat().st_size, {}
    for name, tensor in tensors(content):
        sizes[name] = tensor.numel() * tensor.element_size()
    claimed = sum(sizes.values())
    if claimed > max(EXPANSION * size, size + SLACK):
        largest = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"checkpoint {path}: its tensors claim {claimed / 1e6:,.1f} MB, most of it {largest}, and the file has "
            f"{size / 1e6:,.1f} MB: refused"
        )


def tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in nested dicts and lists of any depth, with its path."""
    waiting, seen = [("", content)], set[int]()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:  # it may contain itself
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{name[:200]}[{key!r:.100}]", item) for key, item in items]
