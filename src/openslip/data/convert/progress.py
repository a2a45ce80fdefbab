"""Progress of a conversion: a live line on a terminal, a line per shard elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from openslip.data.convert.manifest import Entry, Totals


@contextmanager
def shown(console: Console) -> Iterator[Callable[[Entry, Totals], None]]:
    """A function to call after each shard."""
    if not console.is_terminal:
        yield lambda entry, totals: console.print(line(entry, totals), soft_wrap=True, highlight=False)
        return
    with console.status("first shard") as status:
        yield lambda entry, totals: status.update(line(entry, totals))


def line(entry: Entry, totals: Totals) -> str:
    """`shard-000003.tar: 9,871 samples, 1,240.6 MB; in all 4 shards, 39,502 samples, 498 left out`."""
    return (
        f"{entry.name}: {entry.samples:,} samples, {entry.bytes / 1e6:,.1f} MB; in all {totals.shards:,} shards, "
        f"{totals.samples:,} samples, {totals.left_out.total():,} left out"
    )
