"""Image-caption tar shards (webdataset's layout) as a source, read by offset."""

import json
import mmap
from pathlib import Path
from typing import Literal

from braceexpand import braceexpand

from openslip.data.index import IMAGE_SUFFIXES, Entry, build_index
from openslip.data.source import Sample, Source
from openslip.errors import UserError


class ShardSource(Source):
    """Members `KEY.jpg|jpeg|png|webp`, `KEY.txt` and/or `KEY.json` (`caption`, `captions`), `KEY.cls`.

    Args:
        shards: a brace pattern, a folder, or a list of them.
        require: what a sample must have to count: `caption`, `label`, or null for the picture alone.
    """

    def __init__(self, *, shards: str | list[str], require: Literal["caption", "label"] | None) -> None:
        self.index = build_index(expand(shards), require)
        self.problems = self.index.problems
        if not self.index.entries:
            met = ", ".join(f"{count} x {reason}" for reason, count in self.problems.items()) or "no samples at all"
            needed = {"caption": "KEY.txt or KEY.json", "label": "KEY.cls", None: "KEY.jpg"}[require]
            raise UserError(
                f"shards {shards}: no usable sample ({met}); each needs a picture and {needed} with the same KEY"
            )
        self.files: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self.index.entries)

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    def __getitem__(self, index: int, /) -> Sample:
        entry = self.index.entries[index]
        suffix = next(suffix for suffix in IMAGE_SUFFIXES if suffix in entry.members)
        name = f"{self.index.shards[entry.shard]}:{entry.key}"
        return Sample(
            key=name, image=self.read(entry, suffix), captions=self.captions(entry, name), label=self.label(entry, name)
        )

    def captions(self, entry: Entry, name: str) -> tuple[str, ...]:
        found = []
        if "txt" in entry.members:
            found.append(self.read(entry, "txt").decode("utf-8", "replace"))
        if "json" in entry.members:
            try:
                fields = json.loads(self.read(entry, "json"))
            except ValueError as error:
                raise UserError(f"{name}.json is not JSON ({error}): mend or remove it") from error
            if isinstance(fields, dict):
                more = fields.get("captions") or [fields.get("caption")]
                found += [caption for caption in more if isinstance(caption, str)]
        return tuple(dict.fromkeys(caption.strip() for caption in found if caption.strip()))

    def label(self, entry: Entry, name: str) -> int | None:
        if "cls" not in entry.members:
            return None
        text = self.read(entry, "cls").strip()
        if not text.isdigit():
            raise UserError(f"{name}.cls holds {text[:20]!r}: expected a class number such as 0")
        return int(text)

    def read(self, entry: Entry, suffix: str) -> bytes:
        offset, length = entry.members[suffix]
        if entry.shard not in self.files:
            with self.index.shards[entry.shard].open("rb") as file:
                self.files[entry.shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self.files[entry.shard][offset : offset + length]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "files": {}}  # each process opens its own


def expand(shards: str | list[str]) -> list[Path]:
    """Paths of all shards, in the order of the list and of names within a folder.

    Raises:
        UserError: nothing there, or a `pipe:` command, which is never run.
    """
    patterns = [shards] if isinstance(shards, str) else shards
    paths = []
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            raise UserError(f"shards {pattern!r}: pipe: would run a command and is refused; give paths of tar files")
        for word in braceexpand(pattern):
            path = Path(word)
            paths += sorted(path.glob("*.tar")) if path.is_dir() else [path]
            if path.is_dir() and not any(path.glob("*.tar")):
                raise UserError(f"shards {word}: the folder holds no .tar file; check data.source.shards")
    if not paths:
        raise UserError("shards: an empty list; give data.source.shards a brace pattern, a folder, or a list of them")
    return paths
