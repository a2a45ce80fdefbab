"""Image-caption tar shards (webdataset's layout) as a source, read by offset."""

import os
from pathlib import Path
from typing import Literal

from braceexpand import braceexpand

from openslip.data.index import build_index, read_captions
from openslip.data.source import Sample, Source
from openslip.errors import UserError

MAX_OPEN = 256  # of the 1024 files that a process may usually have open


class ShardSource(Source):
    """Members `KEY.jpg|jpeg|png|webp`, `KEY.txt` and/or `KEY.json` (`caption`, `captions`), `KEY.cls`.

    Args:
        shards: a brace pattern, a folder, a glob, or a list of them.
        require: what a sample must have to count: `caption`, `label`, or null for the picture alone.
    """

    def __init__(self, *, shards: str | list[str], require: Literal["caption", "label"] | None) -> None:
        self.files: dict[int, _File] = {}
        self.index = build_index(expand(shards), require)
        self.problems = self.index.problems.lines()
        if not len(self.index.rows):
            met = "; ".join(self.problems) or "no pictures at all"
            wanted = {
                "caption": "a picture and KEY.txt, or KEY.json with `caption` or `captions`, under the same KEY; "
                "without captions, only simclr can be trained (data.source.require=null)",
                "label": "a picture and its class number in KEY.cls, under the same KEY",
                None: "a picture KEY.jpg, .jpeg, .png or .webp",
            }[require]
            raise UserError(
                f"shard {self.index.shards[0]}: no usable sample here or after ({met}); each needs {wanted}"
            )

    def __len__(self) -> int:
        return len(self.index.rows)

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    def __getitem__(self, index: int, /) -> Sample:
        shard, image, image_size, txt, txt_size, fields, fields_size, label = self.index.rows[index].item()
        return Sample(
            key=f"{self.index.shards[shard]}:{self.index.key(index)}",
            image=self.read(shard, image, image_size),
            captions=read_captions(self.read(shard, txt, txt_size), self.read(shard, fields, fields_size)),
            label=None if label < 0 else label,
        )

    def read(self, shard: int, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        file = self.files.get(shard)
        if file is None:
            if len(self.files) >= MAX_OPEN:
                self.files.pop(next(iter(self.files)), None)
            file = self.files[shard] = _File(os.open(self.index.shards[shard], os.O_RDONLY))
        content = os.pread(file.descriptor, length, offset)
        if len(content) != length:
            raise UserError(
                f"shard {self.index.shards[shard]} has become shorter since the run began (at offset {offset}): "
                "leave the shards of a run as they are"
            )
        return content

    def __getstate__(self) -> dict:
        return {**self.__dict__, "files": {}}  # each process opens its own


class _File:
    """Closed when nothing reads it any more, so that one thread cannot close what another reads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def expand(shards: str | list[str]) -> list[Path]:
    """Paths of all shards, in the order of the list and of names within a folder.

    Raises:
        UserError: nothing there, an address, or a `pipe:` command, which is never run.
    """
    paths = []
    for pattern in [shards] if isinstance(shards, str) else shards:
        if pattern.strip().startswith("pipe:"):
            raise UserError(f"shards {pattern!r}: pipe: would run a command and is refused; give paths of tar files")
        if "://" in pattern:
            raise UserError(
                f"shards {pattern!r}: shards are read from local files; download them and give their folder"
            )
        for word in braceexpand(pattern):
            path = Path(word)
            if path.is_dir():
                found = sorted(path.glob("*.tar"))
            elif "*" in path.name:
                found = sorted(path.parent.glob(path.name))
            else:
                found = [path]
            if not found:
                raise UserError(f"shards {word}: no .tar file there; check data.source.shards")
            paths += found
    if not paths:
        raise UserError("shards: an empty list; give data.source.shards a brace pattern, a folder, or a list of them")
    return paths
