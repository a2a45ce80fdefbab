"""Cache of remote shards: a folder of bounded size on a local disk, shared by all processes of a machine.

A file under its final name is complete. `.NAME.part` is a download in progress: its process holds a lock on it, which
is released when the process dies, and the file's length is the room it has reserved (0 while it waits for room).
`.NAME.sha256` holds the checksum of a complete file and its modification time. The access time of a complete file is
the time of its last use.
"""

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import urlsplit

from openslip.data.remote.address import shown
from openslip.data.remote.files import (
    cache_folder,
    content_digest,
    is_at,
    make_own,
    must_lock,
    note,
    open_own,
    read_note,
    reserved,
    write_note,
)
from openslip.data.remote.transfer import MIN_BYTES_PER_SECOND, Identity, ask, attempt, copy
from openslip.errors import DataError, UserError
from openslip.terminal import waiting

WAIT_FOR_ROOM = 0.2  # seconds between two attempts to make room
ASKED_AT_ONCE = 16
OURS = re.compile(r"[0-9a-f]{16}-")  # start of the names of cached files; no other file in the folder is ever deleted


class ShardCache:
    """Local copies of remote shards; the least recently used ones are deleted to make room for new ones.

    Safe for any number of processes and threads: each shard is downloaded once. The identity of a shard and the sha256
    of its content are remembered once known, also in copies of this object in other processes. A shard that no longer
    matches them raises DataError.

    Args:
        folder: folder on a local disk; None means `shards` in the user's cache folder.
        max_bytes: upper bound for the folder's content, including downloads in progress.
        min_bytes_per_second: a download that is slower than this for 20 seconds counts as broken.
    """

    def __init__(
        self, *, folder: str | Path | None, max_bytes: int, min_bytes_per_second: float = MIN_BYTES_PER_SECOND
    ) -> None:
        self.given_folder = None if folder is None else Path(folder).expanduser()
        if min_bytes_per_second < 0:
            raise UserError(f"shard_cache.min_bytes_per_second={min_bytes_per_second}: expected 0 (no limit) or more")
        self.max_bytes = max_bytes
        self.min_bytes_per_second = min_bytes_per_second
        self.identities: dict[str, Identity] = {}
        self.checksums: dict[str, str] = {}
        self.prefetcher: threading.Thread | None = None

    @property
    def folder(self) -> Path:
        """Folder of the local copies; local data never asks for it, and so needs no home directory."""
        folder = self.given_folder or cache_folder("shards")
        if folder is None:
            raise UserError(
                "remote shards need a folder for local copies, and this user has no home: set XDG_CACHE_HOME=FOLDER, "
                "or shard_cache.folder=FOLDER"
            )
        return folder

    def identity(self, address: str) -> Identity:
        """Size and version of a remote shard, as its server states them."""
        if address not in self.identities:
            with waiting(lambda: f"the server of shard {shown(address)}"):
                self.identities[address] = attempt(address, lambda: ask(address))
        return self.identities[address]

    def identify(self, addresses: Iterable[str]) -> list[Identity]:
        """Size and version of many remote shards, requested in parallel."""
        with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
            return list(threads.map(self.identity, addresses))

    def open(self, address: str) -> int:
        """Open a shard for reading, after downloading it if needed.

        Returns:
            A file descriptor, which stays readable when the local copy is deleted.
        """
        identity, is_second = self.identity(address), False
        try:
            make_own(self.folder)
            while True:
                copied = self._open_complete(address, identity) or self._download(address, identity)
                if copied is None:
                    continue
                descriptor, checksum = copied
                if self.checksums.setdefault(address, checksum) == checksum:
                    return descriptor
                os.close(descriptor)
                if is_second:
                    raise DataError(
                        f"shard {shown(address)} has changed, although its server states the same size and version: "
                        "leave the shards of a run as they are; to start another run on the new content, delete the "
                        "index that openslip data index names"
                    )
                is_second = True
                self._remove(self.path(address))  # perhaps only the local copy is damaged
        except OSError as error:
            remedy = "name another shard_cache.folder"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                remedy = f"free disk space, or lower shard_cache.max_bytes={self.max_bytes:,}, or {remedy}"
            raise UserError(f"shard cache {self.folder} cannot be written ({error.strerror}): {remedy}") from error

    def fetch(self, address: str) -> Path:
        """Path of the local copy, downloaded if needed; another process may delete it at any time, so prefer `open`."""
        os.close(self.open(address))
        return self.path(address)

    def prefetch(self, address: str) -> None:
        """Download a shard in the background, one at a time; an error is raised only when the shard is opened."""
        if self.prefetcher is None or not self.prefetcher.is_alive():  # a fork copies the object without its thread
            self.wanted: SimpleQueue[str] = SimpleQueue()
            self.prefetcher = threading.Thread(target=self._prefetch_wanted, daemon=True, name="prefetch shards")
            self.prefetcher.start()
        self.wanted.put(address)

    def path(self, address: str) -> Path:
        """Path of the local copy, whether it exists or not."""
        name = re.sub(r"[^A-Za-z0-9._-]", "_", urlsplit(address).path.rpartition("/")[2])[-100:]
        digest = hashlib.sha256(f"{address} {self.identity(address)}".encode()).hexdigest()
        return self.folder / f"{digest[:16]}-{name}"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "prefetcher": None, "wanted": None}

    def _prefetch_wanted(self) -> None:
        while True:
            with suppress(UserError):
                self.fetch(self.wanted.get())

    def _open_complete(self, address: str, identity: Identity) -> tuple[int, str] | None:
        """Open the local copy; returns its descriptor and sha256, or None if there is no complete copy."""
        path = self.path(address)
        with self._lock():
            try:
                descriptor = open_own(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            status = os.fstat(descriptor)
            if status.st_size != identity.size:  # the copy was truncated
                os.close(descriptor)
                path.unlink(missing_ok=True)
                return None
            checksum = read_note(path, status.st_mtime_ns)
            if checksum is None:  # an earlier version wrote the copy, or something else has changed it
                checksum = content_digest(descriptor)
                write_note(path, checksum, descriptor)
            os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
            return descriptor, checksum

    def _download(self, address: str, identity: Identity) -> tuple[int, str] | None:
        """Download a shard; returns its descriptor and sha256, or None if another process had begun first."""
        path = self.path(address)
        part = path.with_name(f".{path.name}.part")
        descriptor = open_own(part, os.O_RDWR | os.O_CREAT)
        checksum = None
        try:
            with must_lock(descriptor, what=f"shard {shown(address)}"):
                if is_at(descriptor, part):  # else the process that held it has finished or stopped
                    try:
                        if not path.exists():
                            self._reserve(address, identity.size, descriptor, part)
                            copy(address, identity, descriptor, self.min_bytes_per_second)
                            os.fsync(descriptor)
                            digest = content_digest(descriptor)
                            with self._lock():
                                write_note(path, digest, descriptor)
                                os.replace(part, path)
                            checksum = digest
                    finally:
                        if checksum is None:
                            part.unlink(missing_ok=True)
        finally:
            if checksum is None:
                os.close(descriptor)
        return None if checksum is None else (descriptor, checksum)

    def _remove(self, path: Path) -> None:
        with self._lock():
            path.unlink(missing_ok=True)

    def _reserve(self, address: str, size: int, descriptor: int, part: Path) -> None:
        """Wait until `max_bytes` leaves room for the download, and reserve it."""
        if size > self.max_bytes:
            raise UserError(
                f"shard {shown(address)} has {size:,} bytes, more than the {self.max_bytes:,} of "
                f"shard_cache.max_bytes for {self.folder}: raise it"
            )
        with waiting(lambda: f"room in shard cache {self.folder}, which downloads of other processes fill"):
            while True:
                with self._lock():
                    if self._make_room(size, part):
                        os.ftruncate(descriptor, size)
                        return
                time.sleep(WAIT_FOR_ROOM)

    def _make_room(self, size: int, part: Path) -> bool:
        """Delete leftovers of dead processes and, as needed, the least recently used shards; False if room is lacking.

        Args:
            size: bytes to make room for.
            part: the download that needs them.
        """
        in_progress, shards = 0, []
        for path in self.folder.iterdir():
            if path == part or not OURS.match(path.name.removeprefix(".")):
                continue
            if path.name.startswith(".") and path.name.endswith(".part"):
                in_progress += reserved(path)
            elif not path.name.startswith("."):
                status = path.stat()
                shards.append((status.st_atime_ns, status.st_size, path))
        if in_progress + size > self.max_bytes:  # even if all shards were deleted
            return False
        used = in_progress + sum(shard_size for _, shard_size, _ in shards)
        for _, freed, path in sorted(shards):
            if used + size <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            note(path).unlink(missing_ok=True)
            used -= freed
        return True

    def _lock(self) -> AbstractContextManager[None]:
        """Lock that is held while complete files are added or deleted."""
        return must_lock(self.folder / ".lock")
