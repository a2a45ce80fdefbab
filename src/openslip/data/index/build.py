"""The index of a list of shards: found where it is up to date, else made, by one process for all.

What any index in the same home knows of an unchanged shard is taken over, so that neither a dataset that grows nor a
scan that was cut short starts again.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openslip.data.captions.policy import CaptionPolicy
from openslip.data.index.index import Entry, Index, Shard, read_journal, whole
from openslip.data.index.scan import LABEL, REQUIREMENTS, ROW, ShardSamples, scan_shard
from openslip.durable import needed
from openslip.errors import UserError
from openslip.locks import locked

FORMAT = 1
NAME = ".openslip-index"
MAX_SCANS = 8  # at the same time; more only wait for the disk
WORTH_PROCESSES = 1 << 30  # bytes of shards, below which starting processes takes longer than the scan

Progress = Callable[[int, int], None]  # shards done, samples found


def open_index(
    shards: list[Shard],
    captions: CaptionPolicy,
    require: str | None,
    *,
    cache_folder: Path,
    fetch: Callable[[str], int],
    progress: Progress,
) -> Index:
    """The index of these shards: from disk where they are unchanged, else scanned now.

    Args:
        shards: at least one.
        captions: what counts as one.
        require: `caption`, `label` or None.
        cache_folder: for an index that cannot lie beside its shards.
        fetch: gives a descriptor of a remote shard.
        progress: called after every shard.
    """
    homes = [cache_folder] if shards[0].path is None else [shards[0].path.parent / NAME, cache_folder]
    states = [state(shard) for shard in shards]

    def index_in(home: Path) -> tuple[Path, list[str]]:
        stamps = stamps_of(shards, states, captions, home, cache_folder)
        return home / hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16], stamps

    for home in homes:
        folder, stamps = index_in(home)
        if whole(folder, stamps):
            return Index(folder, shards, require)
    home = next((home for home in homes if writable(home)), None)
    if home is None:
        tried = " nor to ".join(map(str, homes))
        raise UserError(f"the index of {shards[0].name} can be written neither to {tried}: make one of them writable")
    folder, stamps = index_in(home)
    with locked(folder.with_suffix(".lock")) as alone:  # where not, each process scans into a folder of its own
        if not whole(folder, stamps):  # else another process has been first
            shutil.rmtree(folder, ignore_errors=True)  # damaged, as by a power failure
            try:
                build(folder, shards, stamps, states, captions, fetch, progress, alone=alone)
            except FileNotFoundError:  # a process of another node was first, and has tidied up
                if not whole(folder, stamps):
                    raise
    return Index(folder, shards, require)


State = tuple[int, int]  # size and time in nanoseconds


def state(shard: Shard) -> State:
    """Size and time of a shard's file; a remote shard is told by its version instead."""
    if shard.path is None:
        return -1, 0
    try:
        status = shard.path.stat()
    except OSError as error:
        raise UserError(f"shard {shard.name}: {error.strerror}; check data.source.shards") from error
    return status.st_size, status.st_mtime_ns


def stamps_of(
    shards: list[Shard], states: list[State], captions: CaptionPolicy, home: Path, cache_folder: Path
) -> list[str]:
    """What identifies each unchanged shard; relative paths in an index beside its shards let it move with them."""
    stamps = []
    for shard, (size, mtime_ns) in zip(shards, states, strict=True):
        if shard.path is None:
            address = hashlib.sha256(shard.address.encode()).hexdigest()  # it may hold credentials
            stamps.append(f"{FORMAT} {captions!r} {address} {shard.version}")
        else:
            path = shard.path.absolute()
            where = path if home == cache_folder else os.path.relpath(path, home.parent.absolute())
            stamps.append(f"{FORMAT} {captions!r} {where} {size} {mtime_ns}")
    return stamps


def writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def build(
    folder: Path,
    shards: list[Shard],
    stamps: list[str],
    states: list[State],
    captions: CaptionPolicy,
    fetch: Callable[[str], int],
    progress: Progress,
    *,
    alone: bool,
) -> None:
    """Write a complete index under its name; until then, what was scanned lies in a folder beside it."""
    known = known_shards(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    total = 0
    with ExitStack() as stack:
        files = {
            name: stack.enter_context((partial / name).open("wb"))
            for name in ("rows", "labels", "keys", "caption", "label", "shards.jsonl")
        }
        scanned = samples_of(shards, [known.get(stamp) for stamp in stamps], captions, fetch)
        for done, (stamp, (_, mtime_ns), samples) in enumerate(zip(stamps, states, scanned, strict=True), start=1):
            captioned = np.flatnonzero((samples.rows["txt_size"] > 0) | (samples.rows["json_size"] > 0))
            labelled = np.flatnonzero(samples.labels >= 0)
            counts = {"samples": len(samples.rows), "caption": len(captioned), "label": len(labelled)}
            key_bytes = len(samples.keys)
            entry = Entry(
                stamp, samples.size, mtime_ns, counts, key_bytes, samples.digest, samples.captions, samples.problems
            )
            for name, content in (
                ("rows", samples.rows.tobytes()),
                ("labels", samples.labels.tobytes()),
                ("keys", samples.keys),
                ("caption", (captioned + total).astype("<u4").tobytes()),
                ("label", (labelled + total).astype("<u4").tobytes()),
                # The last: it says that the others are there.
                ("shards.jsonl", json.dumps({**vars(entry), "problems": vars(entry.problems)}).encode() + b"\n"),
            ):
                with needed(partial / name, refusal=UserError, advice="the same command continues the scan"):
                    files[name].write(content)
                    files[name].flush()
            total += len(samples.rows)
            progress(done, total)
        for file in files.values():
            os.fsync(file.fileno())  # the folder's name will say that they are complete
    for requirement in REQUIREMENTS:
        if (partial / requirement).stat().st_size == 4 * total:  # all samples meet it
            (partial / requirement).unlink()
    if (partial / "label").exists() and (partial / "label").stat().st_size == 0:
        (partial / "labels").unlink()
    partial.chmod(0o755)  # mkdtemp made it private
    try:
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():  # else a process of another node was first, with the same content
            raise
        shutil.rmtree(partial, ignore_errors=True)
    if alone:
        for each in folder.parent.glob("*.partial-*"):
            if each.name.startswith(folder.name) or abandoned(each):
                shutil.rmtree(each, ignore_errors=True)


def abandoned(partial: Path) -> bool:
    """Whether no process is scanning into it."""
    try:
        with locked(partial.with_suffix(".lock"), wait=0.0) as held:
            return held
    except OSError:
        return False


class Known(NamedTuple):
    """Where another index holds what a scan of a shard gave."""

    folder: Path
    entry: Entry
    row: int  # the first of its rows
    key: int  # the first byte of its keys


def known_shards(home: Path) -> dict[str, Known]:
    """All shards in the indexes of a home, complete or not, by stamp."""
    known = {}
    for journal in home.glob("*/shards.jsonl"):
        row = key = 0
        for entry in read_journal(journal.parent):
            known[entry.stamp] = Known(journal.parent, entry, row, key)
            row += entry.counts["samples"]
            key += entry.key_bytes
    return known


def samples_of(
    shards: list[Shard], known: list[Known | None], captions: CaptionPolicy, fetch: Callable[[str], int]
) -> Iterator[ShardSamples]:
    """The samples of each shard, in order: taken over from another index, else scanned."""

    def scan(shard: Shard) -> ShardSamples:
        return scan_shard(shard.path or fetch(shard.address), shard.name, captions)

    new = [shard for shard, taken in zip(shards, known, strict=True) if taken is None]
    local = [shard for shard in new if shard.path is not None]
    num_scans = min(os.cpu_count() or 1, len(local), MAX_SCANS)
    with ExitStack() as stack:
        if num_scans > 1 and sum(state(shard)[0] for shard in local) >= WORTH_PROCESSES:
            pool = stack.enter_context(ProcessPoolExecutor(num_scans, mp_context=get_context("spawn")))
            local_scans = pool.map(
                scan_shard, *zip(*((shard.path, shard.name, captions) for shard in local), strict=True)
            )
        else:
            local_scans = map(scan, local)
        threads = ThreadPoolExecutor(2)  # one shard is fetched while another is scanned
        stack.callback(threads.shutdown, cancel_futures=True)
        remote_scans = threads.map(scan, (shard for shard in new if shard.path is None))
        for shard, taken in zip(shards, known, strict=True):
            if taken is None:
                yield next(local_scans if shard.path else remote_scans)
            else:
                yield take_over(taken) or scan(shard)  # None: what was known is damaged


def take_over(known: Known) -> ShardSamples | None:
    """What an index holds of a shard, or None where it is damaged, as after a power failure."""
    folder, entry, row, key = known
    count = entry.counts["samples"]
    try:
        rows = np.fromfile(folder / "rows", ROW, count, offset=row * ROW.itemsize)
        keys = np.fromfile(folder / "keys", np.uint8, entry.key_bytes, offset=key).tobytes()
        labels = np.full(count, -1, LABEL)  # no file: none of them has one
        if (folder / "labels").exists():
            labels = np.fromfile(folder / "labels", LABEL, count, offset=row * LABEL.itemsize)
    except OSError:
        return None
    samples = ShardSamples(entry.size, rows, labels, keys, entry.captions, entry.problems)
    return samples if samples.digest == entry.digest else None
