"""Keys of tar members: unique in the collection, without a dot, and inside their folder."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from openslip.data.convert.record import LeftOut, Record, encodable


def safe(name: str) -> str:
    """A name as a key: the suffix starts at the first dot, and no part may lead out of the folder or be hidden."""
    plain = re.sub(r"[\x00-\x1f\x7f\\.]", "-", encodable(name).strip())
    # Readers skip members under folders such as __MACOSX__, so no key begins with an underscore.
    return "/".join(filter(None, plain.split("/"))).lstrip("_/") or "-"


def unique(records: Iterable[Record | LeftOut]) -> Iterator[Record | LeftOut]:
    """Records with safe keys; one whose key was taken gets its place in the collection behind it.

    Remembers hashes alone, about 70 bytes a record. Two keys of one hash only lengthen the second.
    """
    taken: set[int] = set()
    for place, record in enumerate(records):
        key = safe(record.key)
        while hash(key) in taken:
            key = f"{key}-{place}"
        taken.add(hash(key))
        yield replace(record, key=key)
