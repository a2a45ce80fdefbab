"""Open the index of a list of shards; if there is none that is up to date, one process builds it for all.

Data of unchanged shards is copied from the other indexes in the same folder, so that neither a dataset that grows nor
an interrupted scan starts from the beginning.
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

import numpy as np

from openslip.data.captions.policy import CaptionPolicy
from openslip.data.index.damage import CHECKSUMS, TABLES, checksums, damage
from openslip.data.index.index import REMOTE, Index, Shard, State, state_of
from openslip.data.index.journal import JOURNAL, Entry, journal_line
from openslip.data.index.known import Known, known_shards, take_over
from openslip.data.index.scan import REQUIREMENTS, ShardSamples, scan_shard
from openslip.durable import needed, write_text
from openslip.errors import UserError
from openslip.locks import locked
from openslip.terminal import notice

FORMAT = 2  # version of the files and of the rules for samples; shards indexed in another version are scanned again
NAME = ".openslip-index"
MAX_SCANS = 8  # concurrent scans; more would only wait for the disk
WORTH_PROCESSES = 1 << 30  # bytes of shards; for fewer, starting processes takes longer than the scan

Fetch = Callable[[str], tuple[int, str]]  # maps an address to a file descriptor and the sha256 of its content
Progress = Callable[[int, int], None]  # called with the numbers of shards done and samples found


def open_index(
    shards: list[Shard],
    captions: CaptionPolicy,
    require: str | None,
    *,
    cache_folder: Path | None,
    fetch: Fetch,
    progress: Progress,
) -> Index:
    """Open the index of these shards; scans the shards that no index on disk covers.

    Args:
        shards: at least one shard.
        captions: policy that decides what counts as a caption.
        require: what a sample must have besides its image: `caption`, `label`, or None for nothing.
        cache_folder: folder for an index that cannot be written beside its shards; None if the user has no home.
        fetch: opens a remote shard.
        progress: called after every shard.
    """
    beside = None if shards[0].path is None else shards[0].path.parent / NAME
    homes = [home for home in (beside, cache_folder) if home is not None]
    states = [state(shard) for shard in shards]

    def index_in(home: Path) -> tuple[Path, list[str]]:
        stamps = stamps_of(shards, states, captions, home, cache_folder)
        return home / hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16], stamps

    for home in homes:
        folder, stamps = index_in(home)
        if damage(folder, stamps) is None:
            return Index(folder, shards, states, require)
    home = next((home for home in homes if writable(home)), None)
    if home is None:
        tried = " nor to ".join(map(str, homes if cache_folder else (*homes, "a home, which this user does not have")))
        raise UserError(
            f"the index of {shards[0].name} can be written neither to {tried}: make one of them writable, "
            "or set XDG_CACHE_HOME=FOLDER"
        )
    folder, stamps = index_in(home)
    # On a file system without locks, `alone` is False and each process scans into its own folder.
    with locked(folder.with_suffix(".lock"), what=f"the index {folder}") as alone:
        if problem := damage(folder, stamps):  # else another process was first
            if folder.exists():
                notice(f"index {folder} is damaged ({problem}): the affected shards are scanned again")
                set_aside(folder)
            try:
                build(folder, shards, stamps, captions, fetch, progress, alone=alone)
            except FileNotFoundError:  # a process on another node was first, and has removed this process's folder
                if damage(folder, stamps):
                    raise
            if problem := damage(folder, stamps):  # the damaged index is still in place
                raise UserError(f"index {folder} is damaged ({problem}) and cannot be replaced: remove it")
    return Index(folder, shards, states, require)


def set_aside(folder: Path) -> None:
    """Rename a damaged index to one in progress, from which the data of intact shards is copied."""
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        folder.rename(partial)  # replaces the empty folder
    except OSError:  # not a folder, or a process on another node has renamed it already
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def state(shard: Shard) -> State:
    if shard.path is None:
        return REMOTE
    try:
        return state_of(shard.path.stat())
    except OSError as error:
        raise UserError(f"shard {shard.name}: {error.strerror}; check data.source.shards") from error


def stamps_of(
    shards: list[Shard], states: list[State], captions: CaptionPolicy, home: Path, cache_folder: Path | None
) -> list[str]:
    """Make a text per shard that identifies its unchanged file.

    In an index beside its shards the paths are relative, so that the index stays valid when it is moved with them.
    """
    stamps = []
    for shard, (size, mtime_ns, *_) in zip(shards, states, strict=True):
        if shard.path is None:
            address = hashlib.sha256(shard.address.encode()).hexdigest()  # an address may hold credentials
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
    captions: CaptionPolicy,
    fetch: Fetch,
    progress: Progress,
    *,
    alone: bool,
) -> None:
    """Write an index to a partial folder, and rename the folder when it is complete.

    Args:
        folder: final folder of the index.
        shards: all shards.
        stamps: result of `stamps_of` for the shards.
        captions: policy that decides what counts as a caption.
        fetch: opens a remote shard.
        progress: called after every shard.
        alone: whether this process holds the lock of the index, and so may remove partial folders.
    """
    known = known_shards(folder.parent)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    total = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context((partial / name).open("wb")) for name in (*TABLES, JOURNAL)}
        scanned = samples_of(shards, [known.get(stamp) for stamp in stamps], captions, fetch)
        for done, (stamp, samples) in enumerate(zip(stamps, scanned, strict=True), start=1):
            captioned = np.flatnonzero((samples.rows["txt_size"] > 0) | (samples.rows["json_size"] > 0))
            labelled = np.flatnonzero(samples.labels >= 0)
            counts = {"samples": len(samples.rows), "caption": len(captioned), "label": len(labelled)}
            key_bytes = len(samples.keys)
            entry = Entry(
                stamp,
                samples.size,
                counts,
                key_bytes,
                samples.digest,
                samples.captions,
                samples.content,
                samples.problems,
            )
            for name, content in (
                ("rows", samples.rows.tobytes()),
                ("labels", samples.labels.tobytes()),
                ("keys", samples.keys),
                ("caption", (captioned + total).astype("<u4").tobytes()),
                ("label", (labelled + total).astype("<u4").tobytes()),
                # The journal comes last, because its line states that the others are written.
                (JOURNAL, journal_line(entry)),
            ):
                with needed(partial / name, refusal=UserError, advice="the same command continues the scan"):
                    files[name].write(content)
                    files[name].flush()
            total += len(samples.rows)
            progress(done, total)
        for file in files.values():
            os.fsync(file.fileno())  # the final name of the folder means that they are complete
    for requirement in REQUIREMENTS:
        if (partial / requirement).stat().st_size == 4 * total:  # all samples meet the requirement
            (partial / requirement).unlink()
    if (partial / "label").exists() and (partial / "label").stat().st_size == 0:
        (partial / "labels").unlink()
    write_text(partial / CHECKSUMS, json.dumps(checksums(partial)))
    partial.chmod(0o755)  # mkdtemp made it private
    try:
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():  # otherwise a process on another node was first, with the same content
            raise
        shutil.rmtree(partial, ignore_errors=True)
    if alone:
        for each in folder.parent.glob("*.partial-*"):
            if each.name.startswith(folder.name) or abandoned(each):
                shutil.rmtree(each, ignore_errors=True)


def abandoned(partial: Path) -> bool:
    """Whether no process scans into a partial folder any more."""
    try:
        with locked(partial.with_suffix(".lock"), wait=0.0) as held:
            return held
    except OSError:
        return False


def samples_of(
    shards: list[Shard], known: list[Known | None], captions: CaptionPolicy, fetch: Fetch
) -> Iterator[ShardSamples]:
    """Yield the samples of each shard, in order: copied from another index if it knows them, else scanned."""

    def scan(shard: Shard) -> ShardSamples:
        if shard.path is not None:
            return scan_shard(shard.path, shard.name, captions)
        descriptor, content = fetch(shard.address)
        return scan_shard(descriptor, shard.name, captions)._replace(content=content)

    new = [shard for shard, taken in zip(shards, known, strict=True) if taken is None]
    local = [shard for shard in new if shard.path is not None]
    num_scans = min(os.cpu_count() or 1, len(local), MAX_SCANS)
    with ExitStack() as stack:
        if num_scans > 1 and sum(state(shard).size for shard in local) >= WORTH_PROCESSES:
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
                yield take_over(taken) or scan(shard)  # None: the other index is damaged
