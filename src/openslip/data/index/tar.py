"""Find the offsets of a tar file's members, with a check of every header.

Python's tarfile and webdataset end silently at a damaged header; this code refuses the file.
Format: POSIX.1-1988 (ustar), with GNU and pax long names.
"""

import mmap
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from openslip.errors import UserError
from openslip.regular_file import regular_file
from openslip.terminal import printable

BLOCK = 512  # bytes; every header and every member starts at a multiple of this
SPARSE = "sparse file, which is not read (write the tar file again without -S)"


@dataclass
class Problems:
    """Counts what was skipped or repaired, by reason, and keeps the first place of each reason."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str, count: int = 1) -> None:
        self.counts[reason] += count
        if reason not in self.first:
            self.first[reason] = printable(where)

    def lines(self) -> tuple[str, ...]:
        """Describe the problems, one line per reason."""
        return tuple(f"{count} x {reason}, first {self.first[reason]}" for reason, count in self.counts.items())


def plain_name(name: str) -> str | None:
    """Normalise a member's name as tar does: without `.`, empty parts and a leading slash; None if it contains `..`."""
    if name.startswith((".", "/")) or "/." in name or "//" in name:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        return None if ".." in parts else "/".join(parts)
    return name


def map_shard(file: Path | int, shard: str) -> mmap.mmap:
    """Map a shard into memory.

    Args:
        file: path, or open descriptor, which is closed.
        shard: name of the shard in errors.
    """
    with open(file if isinstance(file, int) else regular_file(file), "rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            raise UserError(f"shard {shard} is empty (0 bytes): download or write it again")
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def walk(shard: str, data: mmap.mmap, problems: Problems) -> list[tuple[bytes, int, int]]:
    """List name, offset and length of every regular file, and check all headers up to the end marker.

    The checksums are compared all at once at the end, because summing 512 bytes at a time in Python would take most of
    the time.
    """
    members: list[tuple[bytes, int, int]] = []
    headers: list[bytes] = []
    offsets: list[int] = []
    size, offset = len(data), 0
    long_name, long_size, is_sparse = None, None, False

    def refuse(reason: str) -> NoReturn:
        verify(shard, headers, offsets)  # the actual damage may be in an earlier header
        raise UserError(f"shard {shard} {reason}: download or write it again")

    if data[:2] == b"\x1f\x8b" or data[:4] == b"\x28\xb5\x2f\xfd" or data[:3] in (b"BZh", b"\xfd7z"):
        raise UserError(f"shard {shard} is compressed (offset 0), and samples are read by offset: unpack it first")
    while True:
        header = data[offset : offset + BLOCK]
        if len(header) < BLOCK:
            refuse(f"is cut off: it ends at offset {size} without tar's end marker")
        if header[0] == 0 and header.count(0) == BLOCK:
            break
        headers.append(header)
        offsets.append(offset)
        length = octal(header[124:136])
        if length is None:
            refuse(f"is damaged at offset {offset} (a header without a size; is it a tar file?)")
        kind, start = header[156:157], offset + BLOCK
        is_regular = kind in b"07\0"
        if is_regular and long_size is not None:
            length = long_size
        if kind == b"S" and header[482]:  # GNU: with more than four pieces, more blocks follow
            while data[start + 504 : start + 505] not in (b"", b"\0"):
                start += BLOCK
            start += BLOCK
        if start + length > size:
            refuse(f"is cut off: its member at offset {offset} ends {start + length - size} bytes after the file")
        if kind == b"S" or (is_regular and is_sparse):
            name = name_of(header) if long_name is None else long_name
            problems.add(SPARSE, name.decode("utf-8", "replace"))
        elif is_regular:
            members.append((name_of(header) if long_name is None else long_name, start, length))
        elif kind == b"L":  # GNU: the next member's long name
            long_name = data[start : start + length].rstrip(b"\0")
        elif kind == b"x":  # pax: attributes of the next member
            attributes = pax(data[start : start + length])
            long_name = attributes.get(b"GNU.sparse.name") or attributes.get(b"path", long_name)
            is_sparse = any(key.startswith(b"GNU.sparse.") for key in attributes)
            long_size = int(attributes[b"size"]) if is_number(attributes.get(b"size", b"")) else None
        elif kind not in b"5gK":  # allowed: folder, pax defaults, GNU long link name
            problems.add("link or device", f"{name_of(header)!r}")
            if kind in b"12":
                length = 0
        if kind not in b"LxK":
            long_name, long_size, is_sparse = None, None, False
        offset = start + -(-length // BLOCK) * BLOCK
    verify(shard, headers, offsets)
    if data[offset:].strip(b"\0"):
        refuse(f"continues after its end marker at offset {offset}, as joined tar files do")
    return members


def verify(shard: str, headers: list[bytes], offsets: list[int]) -> None:
    """Raise UserError unless all headers match their checksums."""
    blocks = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)
    own = 8 * ord(" ") - blocks[:, 148:156].sum(axis=1, dtype=np.int64)  # the checksum field counts as spaces
    sums = np.add.reduceat(blocks.reshape(-1), np.arange(0, blocks.size, BLOCK), dtype=np.int64) + own
    for header, total, offset in zip(headers, sums.tolist(), offsets, strict=True):
        if octal(header[148:156]) != total:
            reason = "wrong header checksum" + ("" if offset else "; is it a tar file?")
            raise UserError(f"shard {shard} is damaged at offset {offset} ({reason}): download or write it again")


def octal(field: bytes) -> int | None:
    if field[0] & 0x80:  # GNU: base 256, for sizes above 8 GiB
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    try:
        return int(digits, 8) if digits.isdigit() else None  # int() would accept a sign
    except ValueError:
        return None


def is_number(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) < 20


def name_of(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def pax(records: bytes) -> dict[bytes, bytes]:
    """Parse the `LENGTH KEY=VALUE` lines of a pax header."""
    attributes = {}
    while records:
        length, _, _ = records.partition(b" ")
        if not is_number(length) or int(length) <= len(length):
            break
        key, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
        attributes[key] = value
        records = records[int(length) :]
    return attributes
