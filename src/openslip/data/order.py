"""Sample order: each global batch is a pure function of seed, epoch and step, independent of ranks and workers.

An epoch permutes the parts (shards) of all collections, groups them into windows of a few parts, and shuffles the
samples within each window. Reading thus stays within a few shards, and any step can be computed without drawing the
steps before it.
"""

import zlib
from bisect import bisect_right
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from openslip.data.source import Collection
from openslip.errors import UserError

VERSION = 1  # version of the sample order; a run that began with another version cannot resume

# Streams of random bits, identified by the highest word of the counter; the views of samples use values below 2^32.
PARTS, MIX, WINDOW, BEGIN = 1 << 32, 2 << 32, 3 << 32, 4 << 32


class Segments(NamedTuple):
    """Runs of consecutive samples, in the order in which an epoch reads them."""

    starts: Int64[np.ndarray, " segments"]
    lengths: Int64[np.ndarray, " segments"]
    ends: Int64[np.ndarray, " segments"]  # position in the epoch after the last sample of each run


def local_batch_size(global_batch_size: int, world_size: int) -> int:
    """Samples per step on each rank; raises UserError if the global batch is not divisible by the number of ranks."""
    local, rest = divmod(global_batch_size, world_size)
    if rest:
        raise UserError(
            f"global_batch_size={global_batch_size} cannot be divided among {world_size} ranks: "
            f"use {local * world_size or world_size} or other trainer.devices"
        )
    return local


def too_few_samples(num_samples: int, global_batch_size: int) -> UserError:
    """Return the error for a dataset that is smaller than a global batch; names the largest power of two that fits."""
    fits = 1 << max(num_samples.bit_length() - 1, 0)
    return UserError(
        f"global_batch_size={global_batch_size} is more than the dataset's {num_samples} samples: "
        f"add global_batch_size={fits}, or more data"
    )


class Order:
    """Order of the samples in global batches of constant size; the last, incomplete batch of an epoch is dropped.

    Args:
        collections: groups of samples of the source, each with its sampling weight.
        global_batch_size: samples per step over all ranks.
        seed: seed of the run, which with the epoch decides the order.
        shuffle_window: number of parts whose samples are shuffled together.
    """

    def __init__(
        self, *, collections: tuple[Collection, ...], global_batch_size: int, seed: int, shuffle_window: int
    ) -> None:
        if shuffle_window < 1:
            raise UserError(f"data.shuffle_window={shuffle_window}: expected 1 or more shards")
        self.parts = [collection.parts[collection.parts > 0] for collection in collections]
        sizes = [int(parts.sum()) for parts in self.parts]
        self.firsts = np.cumsum([0, *sizes]).tolist()  # first sample of each collection
        # First sample of each part, per collection.
        self.starts = [first + np.cumsum(parts) - parts for first, parts in zip(self.firsts, self.parts, strict=False)]
        self.drawn = [round(collection.weight * size) for collection, size in zip(collections, sizes, strict=True)]
        for collection, size, drawn in zip(collections, sizes, self.drawn, strict=True):
            if collection.weight > 0 and size and not drawn:
                raise UserError(
                    f"a weight of {collection.weight} draws none of a dataset's {size} samples: raise it, or give 0"
                )
        self.num_samples = sum(self.drawn)
        if global_batch_size > self.num_samples:
            raise too_few_samples(self.num_samples, global_batch_size)
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle_window = shuffle_window
        self.steps_per_epoch, self.dropped = divmod(self.num_samples, global_batch_size)
        self._segments: dict[int, Segments] = {}
        self._windows: dict[tuple[int, int], Int64[np.ndarray, " samples"]] = {}

    def global_batch(self, epoch: int, step: int) -> Int64[np.ndarray, " global_batch"]:
        """Indices of the samples of one step, in an order that does not depend on the number of ranks."""
        start, stop = step * self.global_batch_size, (step + 1) * self.global_batch_size
        segments = self.segments(epoch)
        first, last = (self.window_at(segments, position) for position in (start, stop - 1))
        begin = self.window_begin(segments, first)
        samples = np.concatenate([self.window(epoch, number) for number in range(first, last + 1)])
        return samples[start - begin : stop - begin]

    def rank_batch(self, epoch: int, step: int, rank: int, world_size: int) -> Int64[np.ndarray, " local_batch"]:
        """Indices of the samples of one rank: a contiguous range of the global batch."""
        local = local_batch_size(self.global_batch_size, world_size)
        return self.global_batch(epoch, step)[rank * local : (rank + 1) * local]

    def read_ahead(self, epoch: int, step: int) -> list[int]:
        """First sample of each part to prefetch at a step: the parts of its windows, and a growing share of the next's.

        In the last window of an epoch, the next window is the first one of the next epoch.
        """
        segments = self.segments(epoch)
        position = step * self.global_batch_size
        first = self.window_at(segments, position) * self.shuffle_window
        number = self.window_at(segments, position + self.global_batch_size - 1)
        begin, size = self.window_begin(segments, number), len(self.window(epoch, number))
        share = (position + self.global_batch_size - begin) / size
        stop, ahead = (number + 1) * self.shuffle_window, int(share * self.shuffle_window)
        near = segments.starts[first : stop + ahead].tolist()
        is_last = stop >= len(segments.starts)
        return near + self.segments(epoch + 1).starts[:ahead].tolist() if is_last else near

    def part_of(self, sample: int) -> tuple[int, int]:
        """Range [first, stop) of the samples in the part that holds a sample."""
        number = bisect_right(self.firsts, sample) - 1
        part = int(np.searchsorted(self.starts[number], sample, side="right")) - 1
        start = int(self.starts[number][part])
        return start, start + int(self.parts[number][part])

    def collection_of(self, sample: int) -> tuple[int, int]:
        """Range [first, stop) of the samples in the collection that holds a sample."""
        number = bisect_right(self.firsts, sample)
        return self.firsts[number - 1], self.firsts[number]

    def segments(self, epoch: int) -> Segments:
        """Runs of samples that an epoch draws, before the samples are shuffled.

        If an epoch draws only a share of a collection, consecutive epochs walk through the collection share by share.
        After the last whole share, a new walk begins with another order of parts. A walk is circular and begins at a
        random offset, so the remainder that fills no whole share, and is skipped, differs from walk to walk.
        """
        if epoch not in self._segments:
            segment_starts, segment_lengths = [], []
            for number, (parts, starts, drawn) in enumerate(zip(self.parts, self.starts, self.drawn, strict=True)):
                if not drawn:
                    continue
                size = int(parts.sum())
                walk, turn = divmod(epoch, size // drawn)
                order = permutation(len(parts), self.seed, number, walk, PARTS)
                starts, lengths = starts[order], parts[order]
                begins = np.cumsum(lengths) - lengths
                begin = 0
                if drawn < size:
                    offset = np.random.Philox(key=self.seed, counter=[0, number, walk, BEGIN]).random_raw()
                    begin = turn * drawn + int(offset % size)
                for edge in (begin % size, begin % size - size):  # the second wraps around the end
                    low = np.clip(edge - begins, 0, lengths)
                    high = np.clip(edge + drawn - begins, 0, lengths)
                    some = high > low
                    segment_starts.append((starts + low)[some])
                    segment_lengths.append((high - low)[some])
            mix = permutation(sum(map(len, segment_starts)), self.seed, 0, epoch, MIX)
            lengths = np.concatenate(segment_lengths)[mix]
            if len(self._segments) > 1:
                self._segments.pop(next(iter(self._segments)))
            self._segments[epoch] = Segments(np.concatenate(segment_starts)[mix], lengths, np.cumsum(lengths))
        return self._segments[epoch]

    def window_at(self, segments: Segments, position: int) -> int:
        """Number of the window that holds a position of the epoch."""
        return int(np.searchsorted(segments.ends, position, side="right")) // self.shuffle_window

    def window_begin(self, segments: Segments, number: int) -> int:
        """Position in the epoch at which a window begins."""
        return int(segments.ends[number * self.shuffle_window - 1]) if number else 0

    def window(self, epoch: int, number: int) -> Int64[np.ndarray, " samples"]:
        """Indices of the samples of a window, shuffled."""
        if (epoch, number) not in self._windows:
            segments = self.segments(epoch)
            own = slice(number * self.shuffle_window, (number + 1) * self.shuffle_window)
            runs = zip(segments.starts[own].tolist(), segments.lengths[own].tolist(), strict=True)
            samples = np.concatenate([np.arange(start, start + length) for start, length in runs])
            if len(self._windows) > 1:
                self._windows.pop(next(iter(self._windows)))
            self._windows[epoch, number] = samples[permutation(len(samples), self.seed, number, epoch, WINDOW)]
        return self._windows[epoch, number]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_segments": {}, "_windows": {}}  # recomputing is cheaper than sending


def permutation(size: int, seed: int, a: int, b: int, stream: int) -> Int64[np.ndarray, " size"]:
    """Draw a permutation from the raw bits of Philox, which are stable across numpy versions, unlike numpy's Generator.

    Args:
        size: length of the permutation.
        seed: key of Philox.
        a: second word of Philox's counter, such as the number of a window.
        b: third word of the counter, such as the epoch.
        stream: highest word of the counter, one of the constants above.
    """
    bits = np.random.Philox(key=seed, counter=[0, a, b, stream]).random_raw(size)
    return np.argsort(bits, kind="stable")


class Randomness:
    """Random numbers for one view of one sample in one epoch, independent of process, rank and order of work.

    All calls return the same generator, with its counter moved to where the numbers of the view begin, because making
    a generator takes five times as long. The result is therefore valid only until the next call.
    """

    def __init__(self, seed: int) -> None:
        self.generator = np.random.Generator(np.random.Philox(key=seed))
        self.state = self.generator.bit_generator.state

    def __call__(self, epoch: int, index: int, view: str) -> np.random.Generator:
        # The lowest word counts the numbers drawn.
        self.state["state"]["counter"][:] = 0, index, epoch, zlib.crc32(view.encode())
        self.generator.bit_generator.state = self.state
        return self.generator
