"""Detect damage to the files of an index, by the checksums in the file `checksums` beside them."""

import json
import zlib
from pathlib import Path

from openslip.data.index.journal import JOURNAL, read_journal
from openslip.data.index.scan import REQUIREMENTS

TABLES = ("rows", "labels", "keys", *REQUIREMENTS)
CHECKSUMS = "checksums"
CHUNK = 1 << 22


def checksum(path: Path) -> int:
    """CRC-32 of a file, at several GB per second: checking 15 million samples takes a fraction of a second."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def checksums(folder: Path) -> dict[str, int]:
    """Compute the checksum of each file of an index."""
    return {name: checksum(folder / name) for name in (*TABLES, JOURNAL) if (folder / name).exists()}


def damage(folder: Path, stamps: list[str]) -> str | None:
    """Say why a folder is not the complete index of these shards, or None if it is; reads all of its files once."""
    try:
        entries = read_journal(folder)
        if [entry.stamp for entry in entries] != stamps:
            return f"{JOURNAL} does not list its shards"
        stated, found = json.loads((folder / CHECKSUMS).read_bytes()), checksums(folder)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return error.strerror or str(error)
    except (ValueError, RecursionError):
        return f"{CHECKSUMS} cannot be read"
    if stated == found:
        return None
    if not isinstance(stated, dict):
        return f"{CHECKSUMS} cannot be read"
    wrong = [name for name in (*TABLES, JOURNAL) if stated.get(name) != found.get(name)]
    return f"{', '.join(wrong) or CHECKSUMS}: not what was written"
