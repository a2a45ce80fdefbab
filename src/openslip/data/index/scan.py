"""Scan a shard: group its members by key to samples, and check them by headers, captions and labels only."""

import hashlib
import mmap
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openslip.data.captions.decoding import is_damaged, text_of
from openslip.data.captions.policy import CaptionPolicy, read_captions, written_captions
from openslip.data.image.formats import IMAGE_SUFFIXES
from openslip.data.index.tar import BLOCK, Problems, map_shard, plain_name, walk
from openslip.data.listing import is_hidden
from openslip.errors import UserError

KNOWN_SUFFIXES = frozenset((*IMAGE_SUFFIXES, "txt", "json", "cls"))
PICKLES = frozenset(("pkl", "pickle", "pyd", "pth", "pt"))  # reading one can run a program

# 28 bytes per sample: offset (in blocks) and size (in bytes) of its members in the shard, with size 0 for a missing
# one, and the end of its key among the keys of the shard.
ROW = np.dtype([(name, "<u4") for name in ("image", "image_size", "txt", "txt_size", "json", "json_size", "key_end")])
LABEL = np.dtype("<i4")  # -1: no label

MAX_MEMBER = (1 << 32) - 1

Extent = tuple[int, int]  # offset in blocks, and length in bytes
NOTHING: Extent = (0, 0)

# What a source may require of a sample, and the reasons why it then skips samples.
REQUIREMENTS: dict[str, tuple[str, ...]] = {"caption": ("no caption", "empty caption"), "label": ("no label",)}


class ShardSamples(NamedTuple):
    """All samples of a shard that have an image, in the order of their first member."""

    size: int  # bytes of the shard
    rows: np.ndarray
    labels: np.ndarray
    keys: bytes
    captions: str  # sha256 of all captions
    problems: Problems
    content: str = ""  # sha256 of the content of a remote shard

    @property
    def digest(self) -> str:
        """Sha256 of rows, labels and keys."""
        return hashlib.sha256(self.rows.tobytes() + self.labels.tobytes() + self.keys).hexdigest()


def scan_shard(file: Path | int, name: str, captions: CaptionPolicy) -> ShardSamples:
    """Scan the samples of a shard.

    Args:
        file: path, or open descriptor, which is closed.
        name: name of the shard in errors.
        captions: policy that decides what counts as a caption.

    Raises:
        UserError: the shard is damaged (with the offset in the file), or cannot be read.
    """
    problems, texts = Problems(), hashlib.sha256()
    rows, labels, keys = [], [], []
    try:
        with map_shard(file, name) as data:
            if sys.platform == "linux":
                data.madvise(mmap.MADV_SEQUENTIAL)  # streaming is faster than waiting for each header
            size = len(data)
            for key, members in group(name, data, problems).items():
                image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
                if image is None:
                    problems.add("no image", key)
                    continue
                txt, fields, found = used_texts(key, members, data, captions, problems)
                texts.update("\n".join(found).encode("utf-8", "surrogatepass"))
                rows.append((*image, *txt, *fields, 0))
                labels.append(label_of(key, members, data, problems))
                keys.append(key.encode())
    except OSError as error:
        raise UserError(f"shard {name}: {error.strerror}; check data.source.shards") from error
    table = np.array(rows, ROW)
    table["key_end"] = np.cumsum([len(key) for key in keys])
    if unlabelled := np.flatnonzero(np.array(labels, LABEL) < 0).tolist():
        problems.add("no label", keys[unlabelled[0]].decode(), len(unlabelled))
    if not keys:
        problems.add("shard without a sample", "")
    return ShardSamples(size, table, np.array(labels, LABEL), b"".join(keys), texts.hexdigest(), problems)


def used_texts(
    key: str, members: dict[str, Extent], data: mmap.mmap, captions: CaptionPolicy, problems: Problems
) -> tuple[Extent, Extent, tuple[str, ...]]:
    """Find a sample's captions, and the members txt and json if they contribute any.

    Training reads no other members for captions.
    """
    txt, fields = members.get("txt", NOTHING), members.get("json", NOTHING)
    text, content = read(data, txt), read(data, fields)
    try:
        written, has_others = written_captions(captions, text, content)
    except (ValueError, RecursionError):
        problems.add("json that cannot be read, so only txt was used", key)
        content, fields = b"", NOTHING
        written, has_others = written_captions(captions, text, b"")
    found = tuple(caption for caption in written if not is_damaged(caption))
    if len(found) < len(written):
        problems.add("caption that is not UTF-8, which is not used", key)
    if has_others:
        problems.add("caption that is not text, which is not used", key)
    if any("\N{REPLACEMENT CHARACTER}" in caption for caption in found):
        problems.add("caption with U+FFFD, the mark of bytes lost earlier", key)
    if not found:
        if not written and not has_others:
            problems.add("empty caption" if "txt" in members or "json" in members else "no caption", key)
        return NOTHING, NOTHING, ()
    if fields[1] and read_captions(captions, text, b"") == found:
        fields = NOTHING
    elif txt[1] and read_captions(captions, b"", content) == found:
        txt = NOTHING
    return txt, fields, found


def label_of(key: str, members: dict[str, Extent], data: mmap.mmap, problems: Problems) -> int:
    if "cls" in members:
        digits = text_of(read(data, members["cls"])).strip()
        if digits.isascii() and digits.isdigit() and len(digits) < 10:
            return int(digits)
        problems.add("cls that holds no class number such as 0", key)
    return -1


def read(data: mmap.mmap, extent: Extent) -> bytes:
    block, length = extent
    return data[block * BLOCK : block * BLOCK + length]


def group(
    shard: str, data: mmap.mmap, problems: Problems, suffixes: frozenset[str] = KNOWN_SUFFIXES
) -> dict[str, dict[str, Extent]]:
    """Group the members of a shard by key, then suffix.

    As in webdataset, the key is the path up to the first dot of its last part. Of two members with the same name, the
    first is used. Names are never used as paths.

    Args:
        shard: name of the shard in errors.
        data: the shard's content.
        problems: counts the members that are skipped.
        suffixes: suffixes of the members that are listed.
    """
    groups: dict[str, dict[str, Extent]] = {}
    for raw, start, length in walk(shard, data, problems):
        try:
            name = plain_name(raw.decode())
        except UnicodeDecodeError:
            problems.add("bad name (not UTF-8)", repr(raw))
            continue
        if name is None:
            problems.add("bad name (leads out of its folder)", raw.decode())
            continue
        folder, slash, file = name.rpartition("/")
        stem, _, suffix = file.partition(".")
        suffix = suffix.lower()
        if not stem or any(map(is_hidden, folder.split("/"))):
            continue  # such as macOS's ._name
        elif suffix in suffixes and length > MAX_MEMBER:
            problems.add("member of 4 GiB or more", name)
        elif suffix not in suffixes:
            last = suffix.rpartition(".")[2]
            if last in PICKLES:
                problems.add("pickle, which is never read", name)
            elif last != suffix and last in suffixes:
                problems.add("bad name (a dot in the key)", name)
        else:
            members = groups.setdefault(folder + slash + stem, {})
            if suffix in members:
                problems.add("duplicate key, of which the first was used", name)
            else:
                members[suffix] = (start // BLOCK, length)
    return groups
