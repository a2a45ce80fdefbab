"""Contract of a fetcher: a dataset or a model whose folder is made of files on a public server."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from openslip.data.remote.download import RemoteFile


class Fetcher(ABC):
    """Says which files to download, and makes a folder of them.

    Attributes:
        unpacked_bytes: estimate of the disk space that `build` needs beside the downloads.
    """

    unpacked_bytes: int = 0

    @abstractmethod
    def files(self) -> list[RemoteFile]:
        """List the files to download; this may ask the server."""

    @abstractmethod
    def build(self, downloads: Mapping[str, Path], folder: Path) -> None:
        """Fill an empty folder.

        Args:
            downloads: path of each downloaded file by its name in `files`. They are removed when the folder has its
                name; until then they stay, so that a process that fails or is killed has not lost them.
            folder: the folder, which gets its final name when this returns.
        """
