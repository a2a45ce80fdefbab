"""The folder layout of the hub's `clip-benchmark/wds_NAME` datasets: shards, class names and the kind of targets.

LAION-AI/CLIP_benchmark, clip_benchmark/datasets/builder.py, `build_wds_dataset`.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from openslip.data.listing import visible_files
from openslip.data.source import Collection, Sample, Source
from openslip.data.sources.shards import ShardSource
from openslip.data.sources.wds_vectors import read_vectors
from openslip.errors import MissingData, UserError
from openslip.regular_file import regular_file

# What a sample must have besides its image, by the content of dataset_type.txt.
REQUIRED = {"classification": "label", "retrieval": "caption", "multilabel": None}


@dataclass(frozen=True)
class CaptionLines:
    """Caption policy: each line of KEY.txt is a caption, in which a backslash and an n stand for a new line."""

    def __call__(self, txt: str, fields: dict[str, Any], /) -> list[Any]:
        return [line.replace("\\n", "\n") for line in txt.splitlines()]


class WdsFolder(Source):
    """Source of a split of a `wds_*` folder.

    Args:
        root: folder with `classnames.txt`, perhaps `dataset_type.txt`, and a folder of shards per split.
        split: name of the split, such as `test`.

    Raises:
        MissingData: the folder does not exist.
        UserError: the split has no `nshards.txt`, its shards are not those that this file counts, or one is damaged.
    """

    def __init__(self, *, root: str, split: str) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise MissingData(f"{root}: no such folder; expected classnames.txt and {split}/0.tar, ...", root)
        self.kind = (read_text(self.root / "dataset_type.txt") or "classification").strip().lower()
        if self.kind not in REQUIRED:
            raise UserError(f"{root}/dataset_type.txt holds {self.kind!r:.40}; expected {', '.join(REQUIRED)}")
        names = read_text(self.root / "classnames.txt")
        self.classes = None if names is None else [line.strip() for line in names.splitlines()]
        self.shards = ShardSource(
            shards=[str(path) for path in shard_files(self.root / split)],
            require=REQUIRED[self.kind],
            captions=CaptionLines(),
            equal_captions="keep",
        )
        self.places = self.shards.places
        self.problems = self.shards.problems
        if self.classes is None and self.kind != "retrieval":
            self.problems += (f"{root}: no classnames.txt, so the order of the labels cannot be checked",)
        self._vectors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int, /) -> Sample:
        return self.shards[index]

    @property
    def label_vectors(self) -> UInt8[np.ndarray, "images classes"] | None:
        if self._vectors is None and self.kind == "multilabel":
            self._vectors = read_vectors(self.shards.index, None if self.classes is None else len(self.classes))
        return self._vectors

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        digest = hashlib.sha256(f"{self.shards.fingerprint} {self.classes}".encode())
        if (vectors := self.label_vectors) is not None:
            digest.update(vectors.tobytes())
        return digest.hexdigest()

    @property
    def collections(self) -> tuple[Collection, ...]:
        return self.shards.collections

    def prefetch(self, index: int, /) -> None:
        self.shards.prefetch(index)


def shard_files(folder: Path) -> list[Path]:
    """List the shards `0.tar`, `1.tar`, ... of a split by number, as many as its `nshards.txt` states.

    Raises:
        UserError: there is no such number, a shard is missing, or there is another one.
    """
    stated = read_text(folder / "nshards.txt")
    if stated is None:
        raise UserError(f"{folder}/nshards.txt: no such file; expected the number of shards: download it again")
    if not stated.strip().isdecimal() or not int(stated):
        raise UserError(f"{folder}/nshards.txt holds {stated.strip()!r:.40}; expected a number of shards")
    found = {path.name for path in visible_files(folder) if path.suffix.lower() == ".tar"}
    names = [f"{number}.tar" for number in range(min(int(stated), len(found) + 1))]
    if missing := next((name for name in names if name not in found), None):
        raise UserError(f"{folder}/{missing} is missing; nshards.txt counts {int(stated)} shards: download it again")
    if extra := sorted(found.difference(names)):
        raise UserError(f"{folder}/{extra[0]}: not a shard of the {int(stated)} that nshards.txt counts; remove it")
    return [folder / name for name in names]


def read_text(path: Path) -> str | None:
    """Text of a small file, or None if it does not exist."""
    try:
        return regular_file(path).read_text(encoding="utf-8-sig") if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
