"""Source of image-caption tar shards in webdataset's layout, which are read by offset."""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

from openslip.data.captions.policy import CaptionPolicy, KeepEqual, UniformCaption, read_captions
from openslip.data.index.build import open_index
from openslip.data.index.index import Shard, State, state_of
from openslip.data.index.scan import scan_shard
from openslip.data.index.tar import BLOCK
from openslip.data.remote.address import shown
from openslip.data.remote.cache import ShardCache, content_digest
from openslip.data.remote.files import cache_folder
from openslip.data.source import Collection, Sample, Source
from openslip.data.sources.shard_paths import expand, passed_over, place_of, without_repeats
from openslip.errors import DataError, UserError
from openslip.progress import progress

MAX_OPEN = 64  # an open file takes disk space, even after the cache has deleted it
ALL_CAPTIONS = UniformCaption()


class ShardSource(Source):
    """Source of samples in tar shards.

    A sample consists of the members `KEY.jpg` (or another image suffix), `KEY.txt` and/or `KEY.json` (`caption`,
    `captions`), and `KEY.cls` (label).

    Args:
        shards: a brace pattern, a folder, a glob, an address (https, s3, gs), or a list of them.
        require: what a sample must have besides its image: `caption`, `label`, or null for nothing.
        captions: policy that decides what counts as a caption.
        equal_captions: `keep` keeps equal captions of one image, as retrieval counts them; `drop` (or null) drops them.
        expected_samples: number of samples of the published dataset, if known.
        cache: cache of remote shards; None if all shards are local.
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
        self.states: dict[int, State] = {}  # states of files that have changed and passed the check
        self.ahead: ThreadPoolExecutor | None = None
        expanded, repeated = without_repeats(expand(shards))
        self.places = frozenset(map(place_of, expanded))
        if remote := [shard for shard in expanded if shard.path is None]:
            with progress("asking for the versions of shards"):
                identities = self.cache_of(remote[0]).identify([shard.address for shard in remote])
            versions = {shard.address: str(identity) for shard, identity in zip(remote, identities, strict=True)}
            expanded = [shard._replace(version=versions.get(shard.address, "")) for shard in expanded]
        with progress("indexing shards", total=len(expanded)) as advance:
            self.index = open_index(
                expanded,
                captions,
                require,
                cache_folder=cache_folder("index"),
                fetch=self.fetch,
                progress=lambda done, samples: advance(1),
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
                f"{len(copies)} x shard with the same keys, sizes and captions as another, such as {second} and "
                f"{first}: both are used",
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
                f"shard {expanded[0].name}: no usable sample in this shard or later ones ({problems}); "
                f"each needs {wanted}"
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
            self.check(shard, file.descriptor)  # after reading, so that any change before it is found
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
        """Read bytes of a shard, without a memory map, which would kill the process if the file has become shorter.

        Args:
            file: the open shard.
            shard: number of the shard.
            block: offset in the shard, in blocks of 512 bytes.
            length: number of bytes.
        """
        content = os.pread(file.descriptor, length, block * BLOCK) if length else b""
        if len(content) != length:
            raise DataError(
                f"shard {self.index.shards[shard].name} has become shorter since the run began "
                f"(at offset {block * BLOCK}): leave the shards of a run as they are"
            )
        return content

    def open(self, index: int) -> "_File":
        """Open a shard, which is fetched first if it is remote; at most MAX_OPEN files stay open."""
        file = self.files.get(index)
        if file is None:
            if len(self.files) >= MAX_OPEN:
                self.files.pop(next(iter(self.files)), None)
            shard = self.index.shards[index]
            if shard.path is None:
                file = _File(self.fetch(shard.address)[0])
                self.states[index] = state_of(os.fstat(file.descriptor))  # the cache has checked the content
            else:
                file = _File(os.open(shard.path, os.O_RDONLY | os.O_NONBLOCK))  # nonblocking: it may now be a pipe
                self.check(index, file.descriptor)
            self.files[index] = file
        return file

    def check(self, index: int, descriptor: int) -> None:
        """Raise DataError if a shard has changed since the index was opened.

        A local shard with the same size and mtime, but another inode or ctime, may only have been moved or linked. It
        is scanned again, and has changed if its samples or captions differ. Every use of a file in the cache changes
        its ctime, so a remote shard has changed if both its mtime and the sha256 of its content differ.
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
        """Fetch a remote shard; returns a file descriptor and the sha256 of its content."""
        cache = self.cache_of(Shard(shown(address), None, address, ""))
        return cache.open(address), cache.checksums[address]

    def cache_of(self, shard: Shard) -> ShardCache:
        if self.cache is None:
            raise UserError(f"shard {shard.name}: an address needs data.source.cache, a folder for local copies")
        return self.cache

    def prefetch(self, index: int, /) -> None:
        """Fetch the shard of a sample in the background, or ask the system to read a local shard ahead."""
        shard = self.index.shards[self.index.find(index)[0]]
        if shard.path is None:
            self.cache_of(shard).prefetch(shard.address)
        elif sys.platform == "linux":
            self.ahead = self.ahead or ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
            self.ahead.submit(read_ahead, shard.path)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "files": {}, "ahead": None}  # each process opens its own files


class _File:
    """Open file that is closed with its last reference, so that no thread closes a file that another one reads."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


def copied(scans: Sequence[tuple[str, str, str]]) -> list[tuple[int, int]]:
    """Find pairs of shards whose samples have the same offsets, keys, labels and captions, i.e. renamed copies."""
    first: dict[tuple[str, str], int] = {}
    pairs = [(first.setdefault(scan[:2], place), place) for place, scan in enumerate(scans)]
    return [(earlier, later) for earlier, later in pairs if earlier != later]


def read_ahead(path: Path) -> None:
    """Ask the system to read a file into its page cache, from where the workers read it."""
    with suppress(OSError):  # only a hint; a real error is raised when the samples are read
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        os.close(descriptor)
