"""Local copies of published checkpoints: downloaded once, stripped to what inference needs, and kept.

The folder `checkpoints` of the user's cache holds, for a checkpoint NAME that is published as NAME.pt:

- `NAME.ckpt`: the stripped file; later loads read only this file and its checksum;
- `NAME.pt`: the published file, if the user has put it there, for machines without a network; it is never removed;
- `.NAME.pt.part`: an incomplete download, and `.NAME.pt.identity`: size and version of the complete file;
- `.NAME.pt`: a complete download, removed once the stripped file is on the disk;
- `NAME.ckpt.sha256` and `NAME.pt.sha256`: checksums in the format of `sha256sum`, compared whenever there are any.
"""

import hashlib
import json
import os
from pathlib import Path

from openslip.data.remote.files import cache_folder, make_own, must_lock, open_own
from openslip.durable import needed, sync_folder, write_text
from openslip.errors import DataError, UserError
from openslip.inference.files import UnwrittenError
from openslip.inference.published import Published
from openslip.inference.strip import strip
from openslip.progress import progress
from openslip.terminal import mention, waiting

DEVIATION = 0.05  # largest relative error of an estimated file size, which omits names, settings and buffers
CACHE, SETTING = "checkpoint cache", "OPENSLIP_CACHE"  # for error messages of the cache's files


def local_copy(published: Published) -> Path:
    """Return the stripped copy of a published checkpoint, after downloading and stripping it if there is none.

    Safe for any number of processes: one downloads, the others wait.

    Raises:
        UserError: the file cannot be downloaded, is not the published one, or cannot be written.
    """
    folder = checkpoints_folder(published)
    stripped = folder / f"{published.name}.ckpt"
    if not stripped.exists():
        with needed(stripped, refusal=UserError, advice=f"{SETTING}=FOLDER names another folder on a local disk"):
            make_own(folder, CACHE, SETTING)
            with must_lock(folder / f".{published.name}.lock", what=f"the download of {published.name}"):
                if not stripped.exists():
                    create(published, stripped)
    compare_checksum(stripped, f"delete it, and the next load of {published.name} makes it again")
    return stripped


def checkpoints_folder(published: Published) -> Path:
    """Return the folder of the local copies.

    Raises:
        UserError: the user has no home directory.
    """
    folder = cache_folder("checkpoints")
    if folder is None:
        raise UserError(
            f"checkpoint {published.name} needs a folder for its local copy, and this user has no home: set "
            f"{SETTING}=FOLDER"
        )
    return folder


def create(published: Published, stripped: Path) -> None:
    """Write the stripped copy, from the file that the user has put beside it, or else from a download."""
    by_hand = stripped.with_name(published.file_name)
    source = by_hand if by_hand.exists() else download(published, stripped.with_name(f".{published.file_name}"))
    try:
        refuse_other_size(published, source.stat().st_size, f"{source} has")
        compare_checksum(source, f"download it again from {published.address}")
        checksum_file(stripped).unlink(missing_ok=True)  # this checksum belongs to an earlier copy
        with progress(f"stripping {published.name}"):
            strip(source, stripped, force=True)
            write_checksum(stripped, digest(stripped))
    except UnwrittenError:
        raise
    except UserError:
        if source != by_hand:  # every later load would fail on a bad download; a file of the user's is never removed
            source.unlink()
            checksum_file(by_hand).unlink(missing_ok=True)
        raise
    if source != by_hand:
        source.unlink()


def download(published: Published, whole: Path) -> Path:
    """Download a file to `whole`, unless an earlier process has done so; resume an interrupted download.

    Raises:
        UserError: the server does not answer or states another size, or the file changed during the download.
    """
    from openslip.data.remote.transfer import FetchError, ask, attempt, copy  # slow, and later loads do not need it

    if whole.exists():
        return whole
    address, by_hand = published.address, whole.with_name(published.file_name)
    part = whole.with_name(f".{published.file_name}.part")
    descriptor = open_own(part, os.O_RDWR | os.O_CREAT, CACHE, SETTING)
    try:
        with waiting(lambda: f"the server of {address}"):
            identity = attempt(address, lambda: ask(address), max_retries=1)
        refuse_other_size(published, identity.size, f"{address} has")
        done = resumable_bytes(descriptor, whole.with_name(f"{whole.name}.identity"), [*identity])
        mention(f"{published.name}: {'resuming' if done else 'starting'} the download of {address} to {whole.parent}")
        copy(address, identity, descriptor, 0, done=done)
        os.fsync(descriptor)
    except FetchError as error:
        kept = (
            f"; {size:,} bytes are kept, and the same command resumes" if (size := os.fstat(descriptor).st_size) else ""
        )
        raise UserError(
            f"checkpoint {published.name}: {address} cannot be downloaded ({error.reason}{kept}): without a network, "
            f"download it on another machine and put it at {by_hand}"
        ) from error
    except DataError as error:
        raise UserError(
            f"checkpoint {published.name}: {address} was replaced during the download: repeat the command"
        ) from error
    finally:
        os.close(descriptor)
    with progress("computing the checksum"):
        keep_checksum(part, by_hand)
    part.replace(whole)
    whole.with_name(f"{whole.name}.identity").unlink()
    sync_folder(whole.parent)
    return whole


def resumable_bytes(descriptor: int, note: Path, identity: list) -> int:
    """Return how many bytes of a partial download can be kept: none if the server has another file by now.

    Args:
        descriptor: descriptor of the partial download, which is emptied if nothing of it can be kept.
        note: file with the identity of what was downloaded; it is written again.
        identity: size and version that the server states now.
    """
    try:
        is_same = json.loads(note.read_text(encoding="utf-8")) == identity
    except (OSError, ValueError):
        is_same = False
    done = os.fstat(descriptor).st_size
    if is_same and done <= identity[0]:
        return done
    os.ftruncate(descriptor, 0)
    write_text(note, json.dumps(identity))
    return 0


def refuse_other_size(published: Published, size: int, where: str) -> None:
    """Refuse a file of another size than published, or, if no size is published, of a size far from the estimate."""
    if published.bytes is None and abs(size - published.expected_bytes) > DEVIATION * published.expected_bytes:
        raise UserError(
            f"checkpoint {published.name}: {where} {size:,} bytes, and about {published.expected_bytes:,} are expected "
            f"of {published.source}'s file: it is another file, and is not used"
        )
    if published.bytes is not None and size != published.bytes:
        raise UserError(
            f"checkpoint {published.name}: {where} {size:,} bytes, and {published.source} published "
            f"{published.bytes:,}: it is another file, and is not used"
        )


def keep_checksum(part: Path, name: Path) -> None:
    """Compare a complete download with the checksum of an earlier one; if there is none, record it.

    Args:
        part: the download; it is removed if its checksum differs.
        name: path of the published file, beside which its checksum is.
    """
    checksum, known = digest(part), read_checksum(name)
    if known is None:
        write_checksum(name, checksum)
    elif known != checksum:
        part.unlink()
        raise UserError(
            f"{name.name}: the SHA-256 of this download is {checksum}, and {checksum_file(name)} says {known}: the "
            "download is discarded; delete that file if the published one was replaced"
        )


def compare_checksum(path: Path, advice: str) -> None:
    """Refuse a file whose content is not what was written; a file without a checksum beside it is not checked."""
    known = read_checksum(path)
    if known is not None and digest(path) != known:
        raise UserError(f"checkpoint {path} is damaged (its SHA-256 differs from {checksum_file(path).name}): {advice}")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def read_checksum(path: Path) -> str | None:
    try:
        words = checksum_file(path).read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return None
    return words[0].lower() if words else None


def write_checksum(path: Path, checksum: str) -> None:
    write_text(checksum_file(path), f"{checksum}  {path.name}\n")
