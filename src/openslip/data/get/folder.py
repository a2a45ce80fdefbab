"""The folder of a fetched dataset, which is complete or absent.

Beside the folder NAME are, while it is made: `.NAME.lock`, which one process holds; `.NAME.downloads`, whose files are
kept after an interruption; and `.NAME.unfinished`, the folder that gets the name when it is complete.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from openslip.data.get.fetcher import Fetcher
from openslip.data.remote.download import RemoteFile, download, present_bytes
from openslip.data.remote.files import must_lock
from openslip.durable import needed, sync_folder
from openslip.errors import UserError

ELSEWHERE = "--to DIR names another place"


def create(fetcher: Fetcher, folder: Path, agree: Callable[[int], None] = lambda num_bytes: None) -> None:
    """Download a dataset and make its folder, unless it exists; safe for any number of processes.

    Args:
        fetcher: says what to download, and fills the folder.
        folder: the folder.
        agree: called with the number of bytes to download, before anything is downloaded; it raises to refuse.

    Raises:
        UserError: a download fails, the disk has too little room, or the folder cannot be written.
    """
    with needed(folder, refusal=UserError, advice=ELSEWHERE):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with must_lock(folder.with_name(f".{folder.name}.lock"), what=f"the download of {folder}"):
            if is_filled(folder):
                return
            downloads = downloads_folder(folder)
            unfinished = folder.with_name(f".{folder.name}.unfinished")
            files = fetcher.files()
            refuse_full_disk(files, downloads, fetcher.unpacked_bytes, folder)
            agree(missing_bytes(files, downloads))
            paths = {file.name: download(file, downloads) for file in files}
            shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
            unfinished.mkdir()
            try:
                fetcher.build(paths, unfinished)
                synchronise(unfinished)
                unfinished.replace(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
            sync_folder(folder.parent)
            shutil.rmtree(downloads)


def is_filled(folder: Path) -> bool:
    """Whether there is a folder, or a link to one, with anything in it."""
    return folder.is_dir() and any(folder.iterdir())


def downloads_folder(folder: Path) -> Path:
    """Return the folder of the downloads that a dataset's folder is made of."""
    return folder.with_name(f".{folder.name}.downloads")


def refuse_full_disk(files: list[RemoteFile], downloads: Path, unpacked_bytes: int, folder: Path) -> None:
    """Refuse, before anything is downloaded, a disk with too little room for downloads and folder."""
    missing = unpacked_bytes + missing_bytes(files, downloads)
    free = shutil.disk_usage(folder.parent).free
    if missing > free:
        raise UserError(
            f"{folder} needs {missing / 1e6:,.1f} MB more, and {free / 1e6:,.1f} MB are free: make room, or {ELSEWHERE}"
        )


def missing_bytes(files: list[RemoteFile], downloads: Path) -> int:
    """Return how many bytes of the files are still to be downloaded."""
    return sum(max(file.num_bytes - present_bytes(file, downloads), 0) for file in files)


def synchronise(folder: Path) -> None:
    """Synchronise the files and folders below a folder with the disk."""
    for path, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(path, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(path))
