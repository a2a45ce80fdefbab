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
from openslip.data.remote.download import RemoteFile, read_answer
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
        address = f"{self.hub}/api/datasets/{self.repository}/tree/main?recursive=true"
        try:
            answer = json.loads(read_answer(address))
        except FetchError as error:
            raise UserError(
                f"{self.repository}: {self.hub} cannot be reached ({error.reason}); without a network, copy the "
                "folder from another machine"
            ) from error
        except ValueError as error:
            raise UserError(f"{address}: expected JSON; does HF_ENDPOINT={self.hub} name a hub?") from error
        return answer
