"""Journal `shards.jsonl` of an index: the result of each shard's scan, one line once all its data is in the tables."""

import json
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from openslip.data.index.tar import Problems

JOURNAL = "shards.jsonl"


@dataclass(frozen=True)
class Entry:
    """Line of the journal: the result of a shard's scan."""

    stamp: str  # identifies the shard as it was scanned
    size: int  # bytes of the shard
    counts: dict[str, int]  # number of samples, and of those that meet each requirement
    key_bytes: int
    digest: str  # sha256 of rows, labels and keys
    captions: str  # sha256 of the captions
    content: str  # sha256 of the content of a remote shard, because its server may state no version
    problems: Problems


def journal_line(entry: Entry) -> bytes:
    """Encode an entry as a line of JSON with its own checksum, because a partial index has no checksums of files."""
    fields = {**vars(entry), "problems": vars(entry.problems)}
    return json.dumps({**fields, "checksum": zlib.crc32(json.dumps(fields).encode())}).encode() + b"\n"


def read_journal(folder: Path) -> list[Entry]:
    """Read the entries of completely scanned shards, up to the first truncated or damaged line."""
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
