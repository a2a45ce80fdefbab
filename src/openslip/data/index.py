"""Tar shards as a verified table of offsets: read once, by headers, captions and labels alone.

Python's tarfile and webdataset end silently at a damaged header; this walk checks every checksum and refuses to go on.
Format: POSIX.1-1988 (ustar), with GNU and pax long names.
"""

import hashlib
import json
import mmap
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from openslip.errors import UserError

BLOCK = 512
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
KNOWN_SUFFIXES = frozenset((*IMAGE_SUFFIXES, "txt", "json", "cls"))
PICKLES = frozenset(("pkl", "pickle", "pyd", "pth", "pt"))  # reading one can run a program

# Per sample, 44 bytes: where its members lie in its shard (size 0: it has none) and its label (-1: it has none).
ROW = np.dtype(
    [
        ("shard", "<u4"),
        ("image", "<u8"),
        ("image_size", "<u4"),
        ("txt", "<u8"),
        ("txt_size", "<u4"),
        ("json", "<u8"),
        ("json_size", "<u4"),
        ("label", "<i4"),
    ]
)

Extent = tuple[int, int]  # offset and length in the shard
NOTHING: Extent = (0, 0)


@dataclass
class Problems:
    """What was left out or mended, by reason: how often, and where first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, where)

    def lines(self) -> tuple[str, ...]:
        """One line per reason."""
        return tuple(f"{count} x {reason}, first {self.first[reason]}" for reason, count in self.counts.items())


@dataclass(frozen=True)
class Index:
    """Samples that can be used, in shard order. Arrays, not objects: loader processes share their memory.

    Attributes:
        shards: paths, in order.
        rows: of dtype ROW, one per sample.
        keys: all keys, one after the other.
        key_ends: where each key ends in `keys`.
        problems: of the samples and members that were left out.
        fingerprint: sha256 of shard names and sizes, rows and keys.
    """

    shards: list[Path]
    rows: np.ndarray
    keys: bytes
    key_ends: np.ndarray
    problems: Problems
    fingerprint: str

    def key(self, index: int) -> str:
        start = int(self.key_ends[index - 1]) if index else 0
        return self.keys[start : int(self.key_ends[index])].decode()


def build_index(shards: list[Path], require: str | None) -> Index:
    """Reads the headers, captions and labels of all shards.

    Args:
        shards: tar files, uncompressed.
        require: `caption` or `label` leaves out samples without one and counts them; None takes any picture.

    Raises:
        UserError: a shard that is missing, empty, compressed, damaged or cut off; names it and the offset.
    """
    problems, digest = Problems(), hashlib.sha256()
    parts, keys = [np.empty(0, ROW)], []
    for number, path in enumerate(shards):
        try:
            size = path.stat().st_size
            if size == 0:
                raise UserError(f"shard {path} is empty (0 bytes): download or write it again")
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                rows, shard_keys = read_shard(path, number, data, require, problems)
        except OSError as error:
            raise UserError(f"shard {path}: {error.strerror}; check data.source.shards") from error
        parts.append(np.array(rows, ROW))
        keys += shard_keys
        digest.update(f"{path.name} {size}\n".encode())
    rows, blob = np.concatenate(parts), b"".join(keys)
    key_ends = np.cumsum([len(key) for key in keys], dtype=np.uint64)
    for content in (rows.tobytes(), key_ends.tobytes(), blob):
        digest.update(content)
    return Index(shards, rows, blob, key_ends, problems, digest.hexdigest())


def read_shard(
    path: Path, number: int, data: mmap.mmap, require: str | None, problems: Problems
) -> tuple[list[tuple[int, ...]], list[bytes]]:
    """Rows and keys of a shard's usable samples, in the order of their first member."""
    rows, keys = [], []
    for key, members in group(path, data, problems).items():
        image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
        if image is None:
            problems.add("no picture", f"{path}:{key}")
            continue
        txt, fields = members.get("txt", NOTHING), members.get("json", NOTHING)
        if txt[1] or fields[1]:
            text = data[txt[0] : sum(txt)]
            captions = read_captions(text, b"")
            if fields[1]:
                try:
                    more = read_captions(text, data[fields[0] : sum(fields)])
                except ValueError:
                    problems.add("json that cannot be read, so only txt was used", f"{path}:{key}")
                    more = captions
                if more == captions:
                    fields = NOTHING  # nothing in it that is needed when samples are read
                captions = more
            if any("\N{REPLACEMENT CHARACTER}" in caption for caption in captions):
                problems.add("caption that is not UTF-8, used with its bad bytes replaced", f"{path}:{key}")
            if not captions:
                txt = fields = NOTHING
        if require == "caption" and not txt[1] and not fields[1]:
            problems.add("empty caption" if "txt" in members or "json" in members else "no caption", f"{path}:{key}")
            continue
        label = -1
        if "cls" in members:
            offset, length = members["cls"]
            text = data[offset : offset + length].strip()
            if text.isdigit() and len(text) < 10:
                label = int(text)
            else:
                problems.add("cls that holds no class number such as 0", f"{path}:{key}")
        if require == "label" and label < 0:
            problems.add("no label", f"{path}:{key}")
            continue
        rows.append((number, *image, *txt, *fields, label))
        keys.append(key.encode())
    return rows, keys


def group(path: Path, data: mmap.mmap, problems: Problems) -> dict[str, dict[str, Extent]]:
    """A shard's members by key, then suffix; the key is the path up to the first dot of its last part, as webdataset's.

    The first of two members of one name counts. Names are never used as paths.
    """
    groups: dict[str, dict[str, Extent]] = {}
    for raw, start, length in walk(path, data, problems):
        try:
            name = raw.decode().removeprefix("./")
        except UnicodeDecodeError:
            problems.add("bad name (not UTF-8)", f"{path}:{raw!r}")
            continue
        folder, slash, file = name.rpartition("/")
        stem, _, suffix = file.partition(".")
        suffix = suffix.lower()
        if name.startswith("/") or (".." in name and ".." in name.split("/")):
            problems.add("bad name (leads out of its folder)", f"{path}:{name}")
        elif not stem:
            continue  # hidden files, such as macOS's ._name
        elif suffix not in KNOWN_SUFFIXES:
            last = suffix.rpartition(".")[2]
            if last in PICKLES:
                problems.add("pickle, which is never read", f"{path}:{name}")
            elif last != suffix and last in KNOWN_SUFFIXES:
                problems.add("bad name (a dot in the key)", f"{path}:{name}")
        else:
            members = groups.setdefault(folder + slash + stem, {})
            if suffix in members:
                problems.add("duplicate key, of which the first was used", f"{path}:{name}")
            else:
                members[suffix] = (start, length)
    return groups


def walk(path: Path, data: mmap.mmap, problems: Problems) -> list[tuple[bytes, int, int]]:
    """Name, offset and length of every regular file; every header checked, up to the end marker.

    Checksums are compared at the end, all at once: sums of 512 bytes in Python would take most of the time.
    """
    found: list[tuple[bytes, int, int]] = []
    headers: list[bytes] = []
    offsets: list[int] = []
    size, offset = len(data), 0
    long_name, long_size = None, None

    def refuse(reason: str) -> NoReturn:
        verify(path, headers, offsets)  # an earlier header may be what led here
        raise UserError(f"shard {path} {reason}: download or write it again")

    if data[:2] == b"\x1f\x8b" or data[:4] == b"\x28\xb5\x2f\xfd" or data[:3] in (b"BZh", b"\xfd7z"):
        raise UserError(f"shard {path} is compressed (offset 0), and samples are read by offset: unpack it first")
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
        regular = kind in b"07\0"
        if regular and long_size is not None:
            length = long_size
        if start + length > size:
            refuse(f"is cut off: its member at offset {offset} ends {start + length - size} bytes after the file")
        if regular:
            found.append((name_of(header) if long_name is None else long_name, start, length))
        elif kind == b"L":  # GNU: the next member's long name
            long_name = data[start : start + length].rstrip(b"\0")
        elif kind == b"x":  # pax: attributes of the next member
            attributes = pax(data[start : start + length])
            long_name = attributes.get(b"path", long_name)
            long_size = int(attributes[b"size"]) if attributes.get(b"size", b"").isdigit() else None
        elif kind not in b"5gK":  # folder, pax defaults, GNU's long link name
            problems.add("link, device or sparse file", f"{path}:{name_of(header)!r}")
            if kind in b"12":
                length = 0
        if kind not in b"LxK":
            long_name = long_size = None
        offset = start + -(-length // BLOCK) * BLOCK
    verify(path, headers, offsets)
    if data[offset:].strip(b"\0"):
        refuse(f"goes on after its end marker at offset {offset}, as joined tar files do")
    return found


def verify(path: Path, headers: list[bytes], offsets: list[int]) -> None:
    if not headers:
        return
    blocks = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, BLOCK)
    own = 8 * ord(" ") - blocks[:, 148:156].sum(axis=1, dtype=np.int64)  # their own field counts as spaces
    sums = np.add.reduceat(blocks.reshape(-1), np.arange(0, blocks.size, BLOCK), dtype=np.int64) + own
    for header, total, offset in zip(headers, sums.tolist(), offsets, strict=True):
        stated = octal(header[148:156])
        if stated != total:
            signed = np.frombuffer(header, np.int8).sum(dtype=np.int64)  # some old writers summed signed bytes
            signed += 8 * ord(" ") - np.frombuffer(header[148:156], np.int8).sum(dtype=np.int64)
            if stated != signed:
                reason = "wrong header checksum" + ("" if offset else "; is it a tar file?")
                raise UserError(f"shard {path} is damaged at offset {offset} ({reason}): download or write it again")


def octal(field: bytes) -> int | None:
    if field[0] & 0x80:  # GNU: base 256, for sizes above 8 GiB
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def name_of(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def pax(records: bytes) -> dict[bytes, bytes]:
    """The `LENGTH KEY=VALUE` lines of a pax header."""
    attributes = {}
    while records:
        length, _, _ = records.partition(b" ")
        if not length.isdigit() or int(length) <= len(length):
            break
        key, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
        attributes[key] = value
        records = records[int(length) :]
    return attributes


def read_captions(txt: bytes, fields: bytes) -> tuple[str, ...]:
    """The txt, then `captions` and `caption` of the json: stripped, without blanks and repetitions.

    Raises:
        ValueError: not JSON.
    """
    found = [txt.decode("utf-8", "replace").strip()]
    if fields:
        content = json.loads(fields.decode("utf-8", "replace"))
        if isinstance(content, dict):
            listed = content.get("captions")
            more = [*(listed if isinstance(listed, list) else [listed]), content.get("caption")]
            found += [caption.strip() for caption in more if isinstance(caption, str)]
    return tuple(dict.fromkeys(filter(None, found)))
