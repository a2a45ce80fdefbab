"""Sizes that a checkpoint file declares, compared with its own before anything is allocated for them."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from openslip.errors import UserError

SLACK = 64 << 20  # bytes that small tensors may expand to: constants are stored once and shown many times
EXPANSION = 4  # times the file's size: weights that are tied stand in it once


def refuse_inflated(path: Path) -> None:
    """Refuse a zip file that holds more than its size: torch stores its members as they are.

    Raises:
        UserError: compressed or overlapping members, or a pickle that can ask for any memory.
        zipfile.BadZipFile: it is cut off or damaged.
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
        for member in members:  # torch allows it, and `bytearray(10**10)` is ten gigabytes of zeros
            if member.filename.endswith("/data.pkl"):
                with archive.open(member) as pickled:
                    pickled._expected_crc = None  # pyright: ignore  # torch can leave checksums out
                    if b"\nbytearray\n" in pickled.read():
                        raise UserError(f"checkpoint {path}: it names bytearray, which no checkpoint needs: refused")


def refuse_expanding(path: Path, content: Any) -> None:
    """Refuse tensors that are far larger than the file.

    Args:
        path: of the file.
        content: as read onto the device `meta`, so that nothing has been allocated.

    Raises:
        UserError: they are.
    """
    size, sizes = path.stat().st_size, {}
    for name, tensor in _tensors(content):
        sizes[name] = tensor.numel() * tensor.element_size()
    claimed = sum(sizes.values())
    if claimed > max(EXPANSION * size, size + SLACK):
        largest = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"checkpoint {path}: its tensors claim {claimed / 1e6:,.1f} MB, most of it {largest}, and the file has "
            f"{size / 1e6:,.1f} MB: refused"
        )


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a nest of dicts and lists of any depth, by its path."""
    waiting, seen = [("", content)], set[int]()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:  # it may hold itself
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{name[:200]}[{key!r:.100}]", item) for key, item in items]
