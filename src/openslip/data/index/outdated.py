"""Find indexes on disk that no start will use: of another version, of changed or missing shards, damaged or foreign."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from openslip.data.index.build import FORMAT, NAME
from openslip.data.index.damage import damage
from openslip.data.index.journal import Entry, read_journal


def index_folders(places: Iterable[Path]) -> Iterator[Path]:
    """Yield the complete indexes beside the shards of each place.

    Args:
        places: folders of shards, folders of such folders, or files beside the shards.
    """
    homes = {home for place in places for home in (place.parent / NAME, place / NAME, *place.glob(f"*/{NAME}"))}
    for home in sorted(homes):
        yield from complete(home)


def complete(home: Path) -> list[Path]:
    """Return the folders of a folder of indexes, without those in progress."""
    return sorted(path for path in home.glob("*") if path.is_dir() and ".partial-" not in path.name)


def why_unused(folder: Path) -> str | None:
    """Return why no start will use an index, or None if it fits its shards."""
    try:
        entries = read_journal(folder)
    except OSError:
        entries = []
    if not entries:
        return "is no index of OpenSLIP"
    if any(entry.stamp.split(" ")[0] != str(FORMAT) for entry in entries):
        return "was written by another version of OpenSLIP"
    if changed := sum(has_changed(entry, folder) for entry in entries):
        return f"is out of date: {changed} of its {len(entries)} shards have changed, moved or gone"
    if problem := damage(folder, [entry.stamp for entry in entries]):
        return f"is damaged ({problem})"
    return None


def has_changed(entry: Entry, folder: Path) -> bool:
    """Whether a local shard is no longer as it was indexed; remote ones are not asked for.

    A stamp of `build.stamps_of` ends in the shard's path, size and modification time, after the caption policy's repr.
    """
    start, _, mtime_ns = entry.stamp.rpartition(" ")
    start, _, size = start.rpartition(" ")
    _, closed, path = start.partition(") ")
    if entry.content or not closed:
        return False
    try:
        status = (folder.parents[1] / path).stat()  # relative to the shards' folder, or absolute
    except OSError:
        return True
    return (str(status.st_size), str(status.st_mtime_ns)) != (size, mtime_ns)
