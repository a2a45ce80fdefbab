"""Files of Debian packages, unpacked without root and without Debian's tools.

A package is an `ar` archive (deb(5)): members of a 60-byte header each, of which `data.tar.xz` holds the files.
"""

import gzip
import posixpath
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from openslip.data.get.fetcher import Fetcher
from openslip.data.remote.download import RemoteFile
from openslip.errors import UserError
from openslip.progress import progress

MAGIC = b"!<arch>\n"
HEADER = 60  # bytes: name 16, time 12, owner 6, group 6, mode 8, size 10, end 2


class DebianFolder(Fetcher):
    """A folder of a Debian package.

    Args:
        address: address of the package.
        num_bytes: size of the package.
        sha256: SHA-256 of the package, as Debian's package index states it.
        below: folder in the package, whose files are taken.
        into: folder for the files, relative to the dataset's folder.
        decompress: whether a file `NAME.gz` becomes `NAME`, decompressed.
        unpacked_bytes: size of the files in the end.
    """

    def __init__(
        self, *, address: str, num_bytes: int, sha256: str, below: str, into: str, decompress: bool, unpacked_bytes: int
    ) -> None:
        self.package = RemoteFile("package.deb", address, num_bytes, sha256)
        self.below = below
        self.into = into
        self.decompress = decompress
        self.unpacked_bytes = unpacked_bytes + num_bytes * decompress  # both forms exist for a moment

    def files(self) -> list[RemoteFile]:
        return [self.package]

    def build(self, downloads: Mapping[str, Path], folder: Path) -> None:
        target = folder / self.into
        with progress("unpacking"):
            unpack(downloads[self.package.name], self.below, target)
            for path in sorted(target.rglob("*.gz")) if self.decompress else ():
                with gzip.open(path) as compressed, path.with_suffix("").open("xb") as file:
                    shutil.copyfileobj(compressed, file)
                path.unlink()


def unpack(package: Path, below: str, folder: Path) -> None:
    """Copy the regular files of a package that lie below one of its folders; links are not copied.

    Args:
        package: the package.
        below: folder in the package, such as `usr/share/datasets`.
        folder: folder for the files, which keep their paths relative to `below`.

    Raises:
        UserError: the file is no Debian package, or has no file below the folder.
    """
    num_files = 0
    with package.open("rb") as file:
        seek_member(file, "data.tar", package)
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                path = PurePosixPath(posixpath.normpath(member.name))  # without "..", except at its start
                content = tar.extractfile(member) if member.isreg() and path.is_relative_to(below) else None
                if content is None:
                    continue
                target = folder / path.relative_to(below)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as copied:
                    shutil.copyfileobj(content, copied)
                num_files += 1
    if not num_files:
        raise UserError(f"{package} has no file below {below}: it is another package")


def seek_member(file: IO[bytes], name: str, package: Path) -> None:
    """Seek the content of the first member of an `ar` archive whose name begins with `name`."""
    if file.read(len(MAGIC)) == MAGIC:
        while len(header := file.read(HEADER)) == HEADER and header.endswith(b"`\n"):
            if header.startswith(name.encode()):
                return
            size = int(header[48:58])
            file.seek(size + size % 2, 1)  # members begin at even positions
    raise UserError(f"{package} is no Debian package: delete it, and repeat the command")
