"""One shard of records to a tar file: whole or not there, and the same bytes every time."""

import hashlib
import json
import os
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from webdataset.writer import TarWriter

from openslip.data.convert.picture import PictureOptions, PictureReader, UnusableError
from openslip.data.convert.record import LeftOut, Record, clean, encodable
from openslip.durable import Hashing, durable
from openslip.errors import UserError


@dataclass(frozen=True)
class Entry:
    """A written shard, as the manifest keeps it.

    Attributes:
        name: of the file.
        samples: in it.
        bytes: its size.
        sha256: of its bytes.
        records: sha256 of the records it was made of, so that a source that has changed is noticed.
        left_out: by reason, how many.
    """

    name: str
    samples: int
    bytes: int
    sha256: str
    records: str
    left_out: dict[str, int]


@dataclass(frozen=True)
class Task:
    """Records to be written to `path`; `known` is what the manifest says of it, if it was written before."""

    path: Path
    records: list[Record | LeftOut]
    options: PictureOptions
    known: Entry | None


def write_shard(task: Task) -> tuple[Entry, list[str]]:
    """The shard's entry, and a line of JSON for every record that was left out; of a shard that is whole, no lines.

    Raises:
        UserError: the source has changed since, or something cannot be read or written.
    """
    records = hashlib.sha256(repr(task.records).encode("utf-8", "surrogatepass")).hexdigest()
    if task.known is not None:
        if task.known.records != records:
            raise UserError(f"{task.path}: the collection has changed since this shard was written; use a new folder")
        if is_whole(task.path, task.known):
            return task.known, []
    lines, left_out = [], Counter[str]()
    try:
        with durable(task.path) as file, PictureReader() as reader, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on odd pictures that it can decode all the same
            hashed = Hashing(file)
            # Fixed time and owner: the same bytes on every day and machine.
            with TarWriter(cast(BinaryIO, hashed), user="", group="", mode=0o644, encoder=False, mtime=0) as tar:
                for record in task.records:
                    try:
                        tar.write(members(record, reader, task.options))
                    except UnusableError as error:
                        left_out[str(error)] += 1
                        lines.append(json.dumps({"key": record.key, "reason": str(error), **place(record)}))
    except OSError as error:
        raise UserError(
            f"{task.path} could not be written ({error.strerror}): free space or see to its rights, "
            "then the same command goes on"
        ) from error
    samples = len(task.records) - len(lines)
    return Entry(task.path.name, samples, hashed.size, hashed.digest.hexdigest(), records, dict(left_out)), lines


def is_whole(path: Path, entry: Entry) -> bool:
    try:
        with path.open("rb") as file:
            return (
                os.fstat(file.fileno()).st_size == entry.bytes
                and hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
            )
    except OSError:
        return False


def members(record: Record | LeftOut, reader: PictureReader, options: PictureOptions) -> dict[str, Any]:
    """A sample as the writer takes it; captions are looked at first, because pictures cost more."""
    if isinstance(record, LeftOut):
        raise UnusableError(record.reason)
    fields, sample = dict(record.fields), {}
    if isinstance(record.captions, dict):
        named = {name: clean(text) for name, text in record.captions.items()}
        fields |= named
        captions = [text for text in named.values() if text]
    else:
        captions = list(dict.fromkeys(filter(None, map(clean, record.captions))))
        if len(captions) == 1:
            sample["txt"] = captions[0].encode()
        elif captions:
            fields["captions"] = captions
    if record.label is not None:
        sample["cls"] = str(record.label).encode()
    elif not captions:
        raise UnusableError("no caption")
    if fields:
        sample["json"] = encodable(json.dumps(fields, ensure_ascii=False)).encode()
    suffix, data = options.apply(reader.read(record.picture))
    return {"__key__": record.key, suffix: data, **sample}


def place(record: Record | LeftOut) -> dict[str, str]:
    return {} if isinstance(record, LeftOut) else {"picture": encodable(record.picture.path)}
