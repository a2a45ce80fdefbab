"""Drawings of the Open Clip Art Library as captioned shards: its public-domain files with a title and keywords."""

import hashlib
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from openslip.data.convert import SAMPLES_PER_SHARD
from openslip.data.convert.record import PictureFile, Record, with_unique_keys
from openslip.data.convert.shard import Task, write_shard
from openslip.data.get.debian import unpack
from openslip.data.get.fetcher import Fetcher
from openslip.data.get.svg import metadata, rasterise
from openslip.data.remote.download import RemoteFile
from openslip.progress import progress

WORD = re.compile(r"[a-z][a-z' -]+")
AUTHOR = re.compile(r"^clipart by .+? - ", re.IGNORECASE)  # at the start of titles


class Drawing(NamedTuple):
    """A drawing with a title and keywords, which are in lower case."""

    path: Path
    title: str
    keywords: tuple[str, ...]

    def words(self) -> set[str]:
        """Return the words of title and keywords, with the singular of each that ends in s."""
        words = set(re.findall("[a-z]+", " ".join([self.title.lower(), *self.keywords])))
        return words | {word.removesuffix("s") for word in words}


class OpenClipart(Fetcher):
    """Shards `train/`, `val/` and `unseen/` of the drawings in Debian's package `openclipart-svg`, and their names.

    `unseen` has the drawings of names whose words occur in no caption of the other splits. Their label is an index into
    `unseen-names.txt`. Drawings of one title are in one split, and of equal images only the first is kept. A drawing
    has two captions: its title and its keywords.

    Args:
        address: address of the package.
        num_bytes: size of the package.
        sha256: SHA-256 of the package, as Debian's package index states it.
        below: folder of the drawings in the package.
        licences: addresses of licences; drawings with another one, or none, are left out.
        max_same_title: most drawings that may share a title; more are taken for the title of a collection.
        not_keywords: keywords that say nothing about what is drawn.
        seen: keywords that name what is drawn, for evaluations; they go to `seen-names.txt`.
        unseen: names that are held out.
        val_share: share of the other drawings that are held out.
        side: side of the images in pixels.
        unpacked_bytes: size of the package's files.
    """

    def __init__(
        self,
        *,
        address: str,
        num_bytes: int,
        sha256: str,
        below: str,
        licences: list[str],
        max_same_title: int,
        not_keywords: list[str],
        seen: list[str],
        unseen: list[str],
        val_share: float,
        side: int,
        unpacked_bytes: int,
    ) -> None:
        self.package = RemoteFile("package.deb", address, num_bytes, sha256)
        self.below = below
        self.licences = licences
        self.max_same_title = max_same_title
        self.not_keywords = not_keywords
        self.seen = seen
        self.unseen = unseen
        self.val_share = val_share
        self.side = side
        self.unpacked_bytes = unpacked_bytes

    def files(self) -> list[RemoteFile]:
        return [self.package]

    def build(self, downloads: Mapping[str, Path], folder: Path) -> None:
        drawings = folder / "drawings"
        with progress("unpacking"):
            unpack(downloads[self.package.name], self.below, drawings)
        splits, digests = defaultdict[str, list[Record]](list), set[bytes]()
        chosen = self.chosen(drawings)
        with progress("rendering drawings", total=len(chosen)) as advance:
            for drawing in chosen:
                advance(1)
                image = rasterise(drawing.path.read_bytes(), self.side)
                if image is None or (digest := hashlib.sha256(image.tobytes()).digest()) in digests:
                    continue  # many drawings are in two folders, perhaps with different titles
                digests.add(digest)
                split, label = self.split(drawing)
                if split:
                    file = drawing.path.with_suffix(".png")
                    image.save(file)
                    key = drawing.path.relative_to(drawings).with_suffix("").as_posix()
                    captions = (drawing.title, ", ".join(drawing.keywords))
                    splits[split].append(Record(key, PictureFile(str(file)), captions, label))
        for split, records in splits.items():
            write_shards(records, folder / split)
        for names, file in ((self.seen, "seen-names.txt"), (self.unseen, "unseen-names.txt")):
            (folder / file).write_text("".join(f"{name}\n" for name in names))
        shutil.rmtree(drawings)

    def chosen(self, root: Path) -> list[Drawing]:
        """Return the drawings with an allowed licence, a title that few others have, and a keyword that others have."""
        drawings = []
        for path in sorted(root.rglob("*.svg")):
            given, keywords, licence = metadata(path.read_bytes())
            title = AUTHOR.sub("", given, count=1).replace("_", " ").strip()
            if licence in self.licences and title:
                words = (keyword.lower().replace("_", " ").strip() for keyword in keywords)
                kept = [word for word in dict.fromkeys(words) if WORD.fullmatch(word) and word not in self.not_keywords]
                drawings.append(Drawing(path, title, tuple(kept)))
        titles = Counter(drawing.title.lower() for drawing in drawings)
        uses = Counter(keyword for drawing in drawings for keyword in drawing.keywords)
        return [
            drawing
            for drawing in drawings
            if titles[drawing.title.lower()] <= self.max_same_title and any(uses[word] > 1 for word in drawing.keywords)
        ]

    def split(self, drawing: Drawing) -> tuple[str, int | None]:
        """Return the split and the label of a drawing; an empty split leaves it out."""
        words = drawing.words()
        names = [label for label, name in enumerate(self.unseen) if name in words]
        if names:
            is_named = len(names) == 1 and self.unseen[names[0]] in drawing.keywords
            return ("unseen", names[0]) if is_named else ("", None)
        draw = int.from_bytes(hashlib.sha256(drawing.title.lower().encode()).digest()[:8]) / 2**64
        return ("val" if draw < self.val_share else "train"), None


def write_shards(records: Iterable[Record], folder: Path) -> None:
    """Write the records of a split to shards."""
    folder.mkdir()
    unique = with_unique_keys(records)
    batches = iter(lambda: list(islice(unique, SAMPLES_PER_SHARD)), [])
    for shard, batch in enumerate(batches):
        write_shard(Task(folder / f"{folder.name}-{shard:06}.tar", batch, None, "white", None))
