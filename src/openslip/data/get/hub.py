"""Folders `wds_NAME` of the Hugging Face hub: shards of the sets that CLIP_benchmark evaluates.

Layout: repositories `clip-benchmark/wds_NAME`, as `clip_benchmark/datasets/builder.py` of LAION-AI/CLIP_benchmark reads
them. The hub's API lists the files of a repository with their sizes and, for large files, their SHA-256.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openslip.data.get.fetcher import Fetcher
from openslip.data.remote.download import RemoteFile, read_page
from openslip.data.remote.transfer import FetchError
from openslip.errors import UserError

HUB = "https://huggingface.co"  # HF_ENDPOINT names a mirror, as for the hub's own client


class HubFolder(Fetcher):
    """The shards of some splits, with the files of class names and templates.

    Args:
        repository: name of the dataset repository, such as `clip-benchmark/wds_food101`.
        splits: folders of the repository whose shards are downloaded.
    """

    def __init__(self, *, repository: str, splits: list[str]) -> None:
        self.repository = repository
        self.splits = splits
        self.hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")

    def files(self) -> list[RemoteFile]:
        """List the files of the splits and the texts beside them.

        Raises:
            UserError: the hub cannot be reached, or the repository has not the expected layout.
        """
        of_splits = "|".join(map(re.escape, self.splits))
        wanted = re.compile(rf"[\w-]+\.txt|({of_splits})/(nshards\.txt|\d+\.tar)")  # no name leads out of the folder
        files = []
        for entry in self.listing():
            name = entry["path"]
            if entry["type"] == "file" and wanted.fullmatch(name):
                address = f"{self.hub}/datasets/{self.repository}/resolve/main/{name}"
                files.append(RemoteFile(name, address, entry["size"], (entry.get("lfs") or {}).get("oid")))
        names = {file.name for file in files}
        for split in self.splits:
            if not {f"{split}/nshards.txt", f"{split}/0.tar"} <= names:
                raise UserError(f"{self.repository} on {self.hub} has no {split}/nshards.txt or no {split}/0.tar")
        return files

    def build(self, downloads: Mapping[str, Path], folder: Path) -> None:
        for name, path in downloads.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)  # not moved, so that the download is still there if this fails
            except OSError:  # a file system without hard links
                path.replace(target)
        for split in self.splits:
            stated, shards = (
                (folder / split / "nshards.txt").read_text().strip(),
                len([*(folder / split).glob("*.tar")]),
            )
            if stated != str(shards):
                raise UserError(f"{self.repository}: {split}/nshards.txt says {stated}, and there are {shards} shards")

    def listing(self) -> list[dict[str, Any]]:
        """Return the hub's entries for the files and folders of the repository."""
        address: str | None = f"{self.hub}/api/datasets/{self.repository}/tree/main?recursive=true"
        entries: list[dict[str, Any]] = []
        while address is not None:  # the hub lists a thousand files at a time, and a header has the next address
            try:
                content, next_address = read_page(address)
                page = json.loads(content)
                if not isinstance(page, list):
                    raise ValueError("expected a list of files")
            except FetchError as error:
                raise UserError(f"{self.repository}: {self.why(error.reason)}") from error
            except ValueError as error:
                raise UserError(f"{address}: expected JSON; does HF_ENDPOINT={self.hub} name a hub?") from error
            entries += page
            address = next_address
        return entries

    def why(self, reason: str) -> str:
        """Explain that the list of files was not given, and say what to do."""
        if reason.startswith(("HTTP 404", "not found")):
            return f"{self.hub} has no such dataset ({reason}): it was renamed or removed; search it there by hand"
        if reason.startswith(("HTTP 401", "HTTP 403")):  # the hub's answer to a wrong name, too
            return (
                f"{self.hub} does not give it without an account ({reason}), or has no dataset of this name: open its "
                "page in a browser, and download the folder by hand"
            )
        return f"{self.hub} cannot be reached ({reason}); without a network, copy the folder from another machine"
