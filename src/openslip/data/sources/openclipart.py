"""The drawings of `openslip data get openclipart`: captioned for training, and with the names of what they show."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8

from openslip.data.source import Sample, Source
from openslip.data.sources.shards import ShardSource
from openslip.data.sources.shuffled_captions import ShuffledCaptions
from openslip.errors import UserError

Split = Literal["train", "val", "unseen"]


class NamedDrawings(Source):
    """Drawings that have at least one of some names among their keywords; `label_vectors` says which of them.

    Args:
        source: drawings with two captions: the title, and the keywords, separated by a comma and a space.
        names: the names.
    """

    def __init__(self, source: Source, names: list[str]) -> None:
        keywords = [set(source[place].captions[-1].split(", ")) for place in range(len(source))]
        vectors = np.array([[name in words for name in names] for words in keywords], dtype=np.uint8)
        self.source = source
        self.rows = np.flatnonzero(vectors.any(axis=1))
        self.vectors = vectors[self.rows]
        self.classes = names
        self.places, self.problems = source.places, source.problems

    @property
    def label_vectors(self) -> UInt8[np.ndarray, "images classes"]:
        return self.vectors

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Sample:
        return self.source[int(self.rows[index])]

    @property
    def fingerprint(self) -> str:
        return f"those of {self.source.fingerprint} named {', '.join(self.classes or ())}"


def openclipart(root: str, split: Split, shuffle_captions: bool = False) -> Source:
    """Open all drawings of one split, with their captions.

    Args:
        root: folder of the dataset.
        split: `train`, `val` (other drawings) or `unseen` (drawings of names that the captions of the others lack).
        shuffle_captions: permute the captions among the drawings, as a control experiment.
    """
    source = ShardSource(shards=str(folder_of(root, split)), require="caption", equal_captions="keep")
    return ShuffledCaptions(source) if shuffle_captions else source


def named(root: str, split: Split) -> Source:
    """Open the drawings of one split that have names, which are `unseen-names.txt` for `unseen`, else `seen-names.txt`.

    Args:
        root: folder of the dataset.
        split: as for `openclipart`.
    """
    folder = folder_of(root, split)
    file = folder.parent / ("unseen-names.txt" if split == "unseen" else "seen-names.txt")
    if not file.is_file():
        raise UserError(f"{file} is missing: an earlier version made {root}; delete it, and repeat: {COMMAND}")
    return NamedDrawings(openclipart(root, split), file.read_text("utf-8").splitlines())


COMMAND = "openslip data get openclipart"


def folder_of(root: str, split: str) -> Path:
    """Return the folder of a split's shards."""
    if split not in get_args(Split):
        raise UserError(f"split={split}: openclipart expected one of {', '.join(get_args(Split))}")
    folder = Path(root) / split
    if not folder.is_dir():
        raise UserError(f"root={root}: no drawings there; {COMMAND} fetches them (--to DIR names the folder above)")
    return folder
