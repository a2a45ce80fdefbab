"""Download files whose size and SHA-256 are known; the next call resumes an interrupted download."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openslip.data.remote.address import shown
from openslip.data.remote.files import content_digest, open_own
from openslip.data.remote.transfer import FetchError, ask, attempt, connect, copy
from openslip.durable import sync_folder
from openslip.errors import DataError, UserError
from openslip.terminal import mention, waiting


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, and how to tell that a download of it is complete and unchanged.

    Attributes:
        name: path of the download, relative to the folder of downloads.
        address: address of the file.
        num_bytes: size of the file.
        sha256: SHA-256 of the content in hexadecimal digits; None if nobody states it; then only the size is compared.
    """

    name: str
    address: str
    num_bytes: int
    sha256: str | None


def download(file: RemoteFile, folder: Path) -> Path:
    """Download a file into a folder, unless it is there already, and return its path.

    Args:
        file: the file.
        folder: folder of downloads, which only this process writes to.

    Raises:
        UserError: the server does not answer, or what it has, or what is in the folder, is another file.
    """
    whole = folder / file.name
    if whole.exists():
        refuse_other(file, whole)
        return whole
    whole.parent.mkdir(parents=True, exist_ok=True)
    part = partial(whole)
    descriptor = open_own(part, os.O_RDWR | os.O_CREAT, "download", "--to DIR")
    try:
        resume(file, descriptor)
        os.fsync(descriptor)
        received = content_digest(descriptor)
    except FetchError as error:
        kept = os.fstat(descriptor).st_size
        resumable = f"; {kept:,} bytes are kept, and the same command resumes" if kept and file.sha256 else ""
        raise UserError(
            f"{shown(file.address)} cannot be downloaded ({error.reason}{resumable}): without a network, download it "
            f"on another machine and put it at {whole}"
        ) from error
    except DataError as error:
        raise UserError(f"{shown(file.address)} was replaced during the download: repeat the command") from error
    finally:
        os.close(descriptor)
    if file.sha256 is not None and received != file.sha256:
        part.unlink()
        raise UserError(
            f"{shown(file.address)}: the SHA-256 of this download is {received}, expected {file.sha256}: it is "
            "discarded; repeat the command, and if that does not help, the server has another file"
        )
    part.replace(whole)
    sync_folder(whole.parent)
    return whole


def resume(file: RemoteFile, descriptor: int) -> None:
    """Download what is missing of a file into its partial download."""
    with waiting(lambda: f"the server of {shown(file.address)}"):
        identity = attempt(file.address, lambda: ask(file.address), max_retries=1)
    if identity.size != file.num_bytes:
        raise UserError(
            f"{shown(file.address)} has {identity.size:,} bytes, expected {file.num_bytes:,}: it is another file, and "
            "is not downloaded"
        )
    done = os.fstat(descriptor).st_size
    if file.sha256 is None or done > file.num_bytes:  # nothing would tell whether the first bytes are of the same file
        os.ftruncate(descriptor, 0)
        done = 0
    if done == file.num_bytes:  # the process ended before the file got its name; there is nothing to ask for
        return
    if done:
        mention(f"resuming the download of {shown(file.address)} at {done:,} of {file.num_bytes:,} bytes")
    copy(file.address, identity, descriptor, 0, done=done)


def refuse_other(file: RemoteFile, path: Path) -> None:
    """Refuse a complete download, perhaps put there by hand, that is not the file."""
    with path.open("rb") as content:
        is_right = path.stat().st_size == file.num_bytes and (
            file.sha256 is None or hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
        )
    if not is_right:
        raise UserError(
            f"{path} is not the file of {file.num_bytes:,} bytes at {shown(file.address)} (size or SHA-256 differs): "
            "delete it, and repeat the command"
        )


def partial(whole: Path) -> Path:
    """Return the path of a file's partial download."""
    return whole.with_name(f".{whole.name}.part")


def present_bytes(file: RemoteFile, folder: Path) -> int:
    """Return how many bytes of a file are in the folder of downloads."""
    whole = folder / file.name
    path = next((path for path in (whole, partial(whole)) if path.exists()), None)
    return 0 if path is None else path.stat().st_size


def read_page(address: str) -> tuple[bytes, str | None]:
    """Return a short answer of a server, such as a list of files, and the address of its next page, if it has one.

    Raises:
        FetchError: the server does not answer, or refuses.
    """

    def read() -> tuple[bytes, str | None]:
        system, path = connect(address)
        opened: Any = system.open(path, block_size=0, size=1)  # a stream, which has the headers
        with opened as stream:
            link = stream.r.links.get("next")
            return stream.read(), None if link is None else str(link["url"])

    with waiting(lambda: f"the server of {shown(address)}"):
        return attempt(address, read, max_retries=1)
