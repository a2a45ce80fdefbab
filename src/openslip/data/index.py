"""Tar shards as a verified table of offsets: read once, by headers alone.

Python's tarfile and webdataset end silently at a damaged header; this walk checks every checksum and refuses to go on.
Format: POSIX.1-1988 (ustar), with GNU and pax long names.
"""

import hashlib
import mmap
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from openslip.errors import UserError

BLOCK = 512
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
KNOWN_SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json", "cls")

Extent = tuple[int, int]  # offset and length in the shard


@dataclass
class Entry:
    """One sample: its shard's number, its key, and where its members lie, by suffix."""

    shard: int
    key: str
    members: dict[str, Extent] = field(default_factory=dict)


@dataclass
class Index:
    """Samples that can be used, in shard order, and how many others were met, by reason.

    Attributes:
        shards: paths, in order.
        entries: usable samples.
        problems: reason to count: `no caption`, `no label`, `no picture`, `duplicate key`, `bad name`.
        fingerprint: of shard names, sizes and offsets.
    """

    shards: list[Path]
    entries: list[Entry]
    problems: Counter[str]
    fingerprint: str


def build_index(shards: list[Path], require: str | None) -> Index:
    """Reads the headers of all shards.

    Args:
        shards: tar files, uncompressed.
        require: `caption` or `label` drops samples without one and counts them; None takes any picture.
    """
    wanted = {"caption": ("txt", "json"), "label": ("cls",), None: ()}[require]
    entries, problems, digest = [], Counter(), hashlib.sha256()
    for number, path in enumerate(shards):
        samples, shard_problems = read_shard(path, number)
        problems += shard_problems
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        for entry in samples:
            if not any(suffix in entry.members for suffix in IMAGE_SUFFIXES):
                problems["no picture"] += 1
            elif wanted and not any(suffix in entry.members for suffix in wanted):
                problems[f"no {require}"] += 1
            else:
                entries.append(entry)
                digest.update(f"{entry.key} {sorted(entry.members.items())}\n".encode())
    return Index(shards, entries, problems, digest.hexdigest())


def read_shard(path: Path, number: int) -> tuple[list[Entry], Counter[str]]:
    """A shard's samples in the order of their first member, grouped by key as webdataset does."""
    groups: dict[str, Entry] = {}
    problems: Counter[str] = Counter()
    for name, extent in members(path):
        folder, _, file = name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if name.startswith("/") or ".." in folder.split("/") or not stem:
            problems["bad name"] += 1
            continue
        suffix = suffix.lower()
        if suffix not in KNOWN_SUFFIXES:
            continue
        key = f"{folder}/{stem}" if folder else stem
        entry = groups.setdefault(key, Entry(number, key))
        if suffix in entry.members:
            problems["duplicate key"] += 1
            continue
        entry.members[suffix] = extent
    return list(groups.values()), problems


def members(path: Path) -> list[tuple[str, Extent]]:
    """Name and extent of every regular file in a tar, every header checked.

    Raises:
        UserError: missing, empty, compressed, damaged or cut-off file, with the shard and offset.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size == 0:
                raise UserError(f"shard {path} is empty (0 bytes): download or write it again")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return walk(path, data, size)
    except OSError as error:
        raise UserError(f"shard {path}: {error.strerror}; check data.source.shards") from error


def walk(path: Path, data: mmap.mmap, size: int) -> list[tuple[str, Extent]]:
    if data[:2] == b"\x1f\x8b":
        raise UserError(f"shard {path} is gzipped, which cannot be read by offset: unpack it with gunzip first")
    found: list[tuple[str, Extent]] = []
    offset, long_name, ended = 0, None, False
    while offset + BLOCK <= size:
        header = data[offset : offset + BLOCK]
        if header.count(0) == BLOCK:
            ended = True
            break
        check(path, header, offset)
        length = number(path, header[124:136], offset)
        start = offset + BLOCK
        if start + length > size:
            raise UserError(
                f"shard {path} is cut off: its member at offset {offset} ends {start + length - size} bytes past the "
                "end; download or write it again"
            )
        kind = header[156:157]
        if kind == b"L":  # GNU: the next member's long name
            long_name = data[start : start + length].rstrip(b"\0")
        elif kind == b"x":  # pax: attributes of the next member
            long_name = pax_path(data[start : start + length]) or long_name
        else:
            if kind in (b"0", b"\0", b"7"):
                found.append((decode(long_name or ustar_name(header)), (start, length)))
            long_name = None
        offset = start + -(-length // BLOCK) * BLOCK
    if not ended and offset < size:
        raise UserError(f"shard {path} ends in half a header at offset {offset}: download or write it again")
    return found


def check(path: Path, header: bytes, offset: int) -> None:
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")  # its own field counts as spaces
    if total != number(path, header[148:156], offset):
        raise UserError(f"shard {path} is damaged at offset {offset} (wrong header checksum): download or write it again")


def number(path: Path, field: bytes, offset: int) -> int:
    if field[0] & 0x80:  # GNU: base 256 for sizes above 8 GiB
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise UserError(
            f"shard {path} is damaged at offset {offset} (a header field is no number): is it a tar file?"
        ) from None


def ustar_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" and header[262:263] != b" " else b""
    return prefix + b"/" + name if prefix else name


def pax_path(records: bytes) -> bytes | None:
    """The `path` among `LENGTH KEY=VALUE` lines."""
    while records:
        length, _, _ = records.partition(b" ")
        if not length.isdigit() or int(length) == 0:
            return None
        record, records = records[: int(length)], records[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        if key == b"path":
            return value
    return None


def decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape").removeprefix("./")
