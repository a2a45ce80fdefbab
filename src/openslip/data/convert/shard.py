"""Write the records of a shard to a tar file, which is complete or absent and has the same bytes every time."""

import hashlib
import json
import os
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from webdataset.writer import TarWriter

from openslip.data.convert.image import UnusableError, convert_image, read_image
from openslip.data.convert.manifest import Entry
from openslip.data.convert.record import LeftOut, Record, clean, encodable
from openslip.durable import Hashing, durable, unwritten
from openslip.errors import UserError


@dataclass(frozen=True)
class Task:
    """Records to write to the shard `path`; `known` is the manifest's entry if the shard was written before."""

    path: Path
    records: list[Record | LeftOut]
    resize: int | None
    transparency: str
    known: Entry | None


def write_shard(task: Task) -> tuple[Entry, list[str]]:
    """Write a shard unless it is complete; return its entry, and a line of JSON per record that was left out now."""
    records = hashlib.sha256(repr(task.records).encode("utf-8", "surrogatepass")).hexdigest()
    if task.known is not None:
        if task.known.records != records:
            raise UserError(f"{task.path}: the dataset has changed since this shard was written; use a new folder")
        if is_complete(task.path, task.known):
            return task.known, []
    lines, left_out = [], Counter[str]()
    try:
        with durable(task.path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of unusual images that it can decode
            hashed = Hashing(file)
            # Fixed time and owner, so that the bytes are the same on every day and machine.
            with TarWriter(cast(BinaryIO, hashed), user="", group="", mode=0o644, encoder=False, mtime=0) as tar:
                for record in task.records:
                    try:
                        tar.write(members(record, task))
                    except UnusableError as error:
                        left_out[str(error)] += 1
                        place = {} if isinstance(record, LeftOut) else {"picture": encodable(record.picture.path)}
                        lines.append(json.dumps({"key": record.key, "reason": str(error), **place}))
    except OSError as error:
        raise UserError(
            f"{unwritten(task.path, error)}: free space or make it writable, then the same command resumes"
        ) from error
    samples = len(task.records) - len(lines)
    return Entry(task.path.name, samples, hashed.size, hashed.digest.hexdigest(), records, dict(left_out)), lines


def is_complete(path: Path, entry: Entry) -> bool:
    with suppress(OSError), path.open("rb") as file:
        has_size = os.fstat(file.fileno()).st_size == entry.bytes
        return has_size and hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
    return False


def members(record: Record | LeftOut, task: Task) -> dict[str, Any]:
    """Convert a record to webdataset's sample; captions are checked first, because reading an image costs more."""
    if isinstance(record, LeftOut):
        raise UnusableError(record.reason)
    fields, sample = dict(record.fields), {}
    if isinstance(record.captions, dict):
        named = {name: clean(text) for name, text in record.captions.items()}
        fields |= named
        captions = [text for text in named.values() if text]
    else:
        captions = list(filter(None, map(clean, record.captions)))  # equal ones stay: the source keeps or drops them
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
    suffix, data = convert_image(read_image(record.picture), task.resize, task.transparency)
    return {"__key__": record.key, suffix: data, **sample}
