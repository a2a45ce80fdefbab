"""`shards.jsonl` of an index: what a scan found in each shard, a line when all of it is in the tables."""

import json
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from openslip.data.index.tar import Problems

JOURNAL = "shards.jsonl"


@dataclass(frozen=True)
class Entry:
    """A line of the journal: what a scan found in a shard."""

    stamp: str  # identifies the shard as it was scanned
    size: int  # of the shard in bytes
    counts: dict[str, int]  # of samples, and of those that meet each requirement
    key_bytes: int
    digest: str  # sha256 of rows, labels and keys
    captions: str  # sha256 of the captions
    content: str  # sha256 of all of a remote shard: its server may state nothing that changes with it
    problems: Problems


def journal_line(entry: Entry) -> bytes:
    """A line of JSON that holds its own checksum, because a scan that was cut short leaves lines alone."""
    fields = {**vars(entry), "problems": vars(entry.problems)}
    return json.dumps({**fields, "checksum": zlib.crc32(json.dumps(fields).encode())}).encode() + b"\n"


def read_journal(folder: Path) -> list[Entry]:
    """The shards that were scanned to the end; the list ends at a line that was cut short or damaged."""
    entries = []
    for line in (folder / JOURNAL).read_bytes().split(b"\n"):
        try:
            fields = json.loads(line)
            if fields.pop("checksum") != zlib.crc32(json.dumps(fields).encode()):
                break
            problems = fields.pop("problems")
            entries.append(Entry(**fields, problems=Problems(Counter(problems["counts"]), problems["first"])))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            break
    return entries
