"""Image-caption tar shards (webdataset's layout) as a source, read by offset."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import Progress

from openslip.data.captions.policy import CaptionPolicy, KeepEqual, UniformCaption, read_captions
from openslip.data.index.build import open_index
from openslip.data.index.index import Shard, State, state_of
from openslip.data.index.scan import scan_shard
from openslip.data.index.tar import BLOCK
from openslip.data.remote.address import shown
from openslip.data.remote.cache import ShardCache, cache_folder, content_digest
from openslip.data.source import Collection, Sample, Source
from openslip.data.sources.shard_paths import expand, passed_over, place_of, without_repeats
from openslip.errors import DataError, UserError

MAX_OPEN = 64  # a file that is open keeps its space, even where the cache has deleted it
ALL_CAPTIONS = UniformCaption()


class ShardSource(Source):
    """Members `KEY.jpg` or another image's suffix, `KEY.txt` and/or `KEY.json` (`caption`, `captions`), `KEY.cls`.

    Args:
        shards: a brace pattern, a folder, a glob, an address (https, s3, gs), or a list of them.
        require: what a sample must have to count: `caption`, `label`, or null for the image alone.
        captions: what counts as a caption.
        equal_captions: of one image: `keep` all, as retrieval counts them, or `drop` (or null) repetitions.
        expected_samples: of the published dataset.
        cache: local copies of remote shards.
    """

    def __init__(
        self,
        *,
        shards: str | list[str],
        require: Literal["caption", "label"] | None,
        captions: CaptionPolicy = ALL_CAPTIONS,
        equal_captions: Literal["keep", "drop"] | None = None,
        expected_samples: int | None = None,
        cache: ShardCache | None = None,
    ) -> None:
        if require not in (None, "caption", "label"):
            raise UserError(f"data.source.require={require}: expected caption, label or null")
        if equal_captions not in (None, "keep", "drop"):
            raise UserError(f"data.source.equal_captions={equal_captions}: expected drop or keep")
        self.captions = captions = KeepEqual(captions) if equal_captions == "keep" else captions
        self.expected_samples = expected_samples
        self.cache = cache
        self.files: dict[int, _File] = {}
        self.states: dict[int, State] = {}  # of files that were checked after they had changed
        self.ahead: ThreadPoolExecutor | None = None
        expanded, repeated = without_repeats(expand(shards))
        self.places = frozenset(map(place_of, expanded))
        if remote := [shard for shard in expanded if shard.path is None]:
            identities = self.cache_of(remote[0]).identify([shard.address for shard in remote])
            versions = {shard.address: str(identity) for shard, identity in zip(remote, identities, strict=True)}
            expanded = [shard._replace(version=versions.get(shard.address, "")) for shard in expanded]
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("indexing shards", total=len(expanded))
            self.index = open_index(
                expanded,
                captions,
                require,
                cache_folder=cache_folder("index"),
                fetch=self.fetch,
                progress=lambda done, samples: bar.update(
                    task, completed=done, description=f"indexing shards, {samples} samples"
                ),
            )
        for shard, (_, _, content) in zip(expanded, self.index.scans, strict=True):
            if shard.path is None:
                self.cache_of(shard).checksums[shard.address] = content
        self.problems = tuple(self.index.problems.lines())
        if repeated:
            self.problems += (f"{len(repeated)} x shard named more than once, counted once, such as {repeated[0]}",)
        if passed := passed_over(shards):
            self.problems += (
                f"{len(passed)} x shard that is compressed or lies one folder deeper, such as {passed[0]}",
            )
        if copies := copied(self.index.scans):
            first, second = (expanded[place].name for place in copies[0])
            self.problems += (
                f"{len(copies)} x shard with the keys, sizes and captions of another, such as {second} of {first}: "
                "not left out",
            )
        if not len(self.index):
            problems = "; ".join(self.problems) or "no images at all"
            wanted = {
                "caption": f"an image and, under the same KEY, KEY.txt or KEY.json with what {captions!r} takes for "
                "captions; without any, only simclr can be trained (data.source.require=null)",
                "label": "an image and its class number in KEY.cls, under the same KEY",
                None: "an image KEY.jpg, or with another suffix of an image",
            }[require]
            raise UserError(
                f"shard {expanded[0].name}: no usable sample here or after ({problems}); each needs {wanted}"
            )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    @property
    def collections(self) -> tuple[Collection, ...]:
        return (Collection(self.index.parts, 1.0),)

    def __getitem__(self, index: int, /) -> Sample:
        shard, place = self.index.find(index)
        image, image_size, txt, txt_size, fields, fields_size, _ = self.index.rows[place].item()
        try:
            file = self.open(shard)
            contents = [
                self.read(file, shard, *extent)
                for extent in ((image, image_size), (txt, txt_size), (fields, fields_size))
            ]
            self.check(shard, file.descriptor)  # after it was read: what has changed since then is not in the sample
        except UserError as error:  # a shard that cannot be fetched or has changed is not the sample's fault
            raise DataError(str(error)) from error
        except OSError as error:
            raise DataError(
                f"shard {self.index.shards[shard].name} cannot be read any more ({error.strerror}): "
                "the same command resumes"
            ) from error
        return Sample(
            key=f"{self.index.shards[shard].name}:{self.index.key(index)}",
            image=contents[0],
            captions=read_captions(self.captions, contents[1], contents[2]),
            label=self.index.label(place),
        )

    def read(self, file: "_File", shard: int, block: int, length: int) -> bytes:
        """Bytes of a shard; not from a memory map, which would end the process where a file has become shorter."""
        content = os.pread(file.descriptor, length, block * BLOCK) if length else b""
        if len(content) != length:
            raise DataError(
                f"shard {self.index.shards[shard].name} has become shorter since the run began "
                f"(at offset {block * BLOCK}): leave the shards of a run as they are"
            )
        return content

    def open(self, index: int) -> "_File":
        """A shard's file; a remote shard is fetched first, and no more than MAX_OPEN files stay open."""
        file = self.files.get(index)
        if file is None:
            if len(self.files) >= MAX_OPEN:
                self.files.pop(next(iter(self.files)), None)
            shard = self.index.shards[index]
            if shard.path is None:
                file = _File(self.fetch(shard.address)[0])
                self.states[index] = state_of(os.fstat(file.descriptor))  # the cache has checked it
            else:
                file = _File(os.open(shard.path, os.O_RDONLY | os.O_NONBLOCK))  # it may have become a named pipe
                self.check(index, file.descriptor)
            self.files[index] = file
        return file

    def check(self, index: int, descriptor: int) -> None:
        """Raise DataError where a shard is not what it was when the index was opened, by its file and then its content.

        A file of the same size and time has changed where its inode or its time of change has; so it has when it was
        only moved or linked, or, in the cache, used. Then a local shard is scanned again, a remote one read.
        """
        expected, state = self.states.get(index, self.index.states[index]), state_of(os.fstat(descriptor))
        if state == expected:
            return
        shard, (digest, captions, content) = self.index.shards[index], self.index.scans[index]
        if shard.path is None:
            is_same = state.mtime_ns == expected.mtime_ns or content_digest(descriptor) == content
        elif state[:2] == expected[:2]:
            samples = scan_shard(os.dup(descriptor), shard.name, self.captions)
            is_same = (samples.digest, samples.captions) == (digest, captions)
        else:
            is_same = False
        if not is_same:
            raise DataError(f"shard {shard.name} is another file than when the run began: leave the shards as they are")
        self.states[index] = state

    def fetch(self, address: str) -> tuple[int, str]:
        """A descriptor of a remote shard and the sha256 of its content."""
        cache = self.cache_of(Shard(shown(address), None, address, ""))
        return cache.open(address), cache.checksums[address]

    def cache_of(self, shard: Shard) -> ShardCache:
        if self.cache is None:
            raise UserError(f"shard {shard.name}: an address needs data.source.cache, a folder for local copies")
        return self.cache

    def prefetch(self, index: int, /) -> None:
        """Fetch the sample's shard, or ask the system to read it ahead, without waiting."""
        shard = self.index.shards[self.index.find(index)[0]]
        if shard.path is None:
            self.cache_of(shard).prefetch(shard.address)
        elif sys.platform == "linux":
            self.ahead = self.ahead or ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
            self.ahead.submit(read_ahead, shard.path)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "files": {}, "ahead": None}  # each process opens its own


class _File:
    """An open file, closed when nothing reads it any more, so that one thread cannot close what another reads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def copied(scans: Sequence[tuple[str, str, str]]) -> list[tuple[int, int]]:
    """Pairs of shards whose samples have the same places, keys, labels and captions: copies under another name."""
    first: dict[tuple[str, str], int] = {}
    pairs = [(first.setdefault(scan[:2], place), place) for place, scan in enumerate(scans)]
    return [(earlier, later) for earlier, later in pairs if earlier != later]


def read_ahead(path: Path) -> None:
    """Read a file into the system's page cache, for the processes that decode."""
    with suppress(OSError):  # a hint; an error appears when the samples are read
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        os.close(descriptor)
