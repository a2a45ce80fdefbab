"""Packing of captions without padding: one row per real token, with captions sorted by length."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

# For attention in buckets, a caption is padded to a multiple of this number of tokens. The padded length does not
# depend on the other captions of the batch, so the sums over a caption are the same in every batch.
_LENGTH_STEP = 8


@dataclass(frozen=True)
class Buckets:
    """Captions grouped by length into a few padded tensors, for attention kernels that need padding.

    Attributes:
        shapes: for each bucket, its number of captions and its padded length in tokens.
        rows: index of the packed row for each position of the padded tensors, bucket after bucket. A position that is
            padding gets the index of the caption's last token.
        real: true where a position of the padded tensors holds a token, false where it is padding.
        places: position of each packed row in the padded tensors.
    """

    shapes: tuple[tuple[int, int], ...]
    rows: Int[Tensor, " positions"]
    real: Bool[Tensor, " positions"]
    places: Int[Tensor, " rows"]

    def to(self, device: torch.device) -> "Buckets":
        return replace(self, **copied(device, rows=self.rows, real=self.real, places=self.places))


@dataclass(frozen=True)
class Packing:
    """Indices that turn a batch of padded captions into packed rows, sorted by caption length, and back.

    If captions share rows (`prefix_sharing`), the rows of a caption are not consecutive, and `buckets` finds them.

    Attributes:
        tokens: index of each packed row in the flattened batch of token ids.
        positions: position of each packed row in its caption, for the position embedding.
        starts: for each sorted caption, the index of its first packed row; the last element is the number of rows.
        last: for each sorted caption, the index of the packed row of its last token.
        unsorted: for each caption of the batch, its index among the sorted captions.
        longest: upper bound on the number of tokens per caption.
        buckets: padded form for attention; None if attention needs no padding.
    """

    tokens: Int[Tensor, " rows"]
    positions: Int[Tensor, " rows"]
    starts: Int32[Tensor, " captions_and_end"]
    last: Int[Tensor, " captions"]
    unsorted: Int[Tensor, " captions"]
    longest: int
    buckets: Buckets | None

    def to(self, device: torch.device) -> "Packing":
        """Copy the index tensors to a device, without waiting for the copies."""
        indices = copied(
            device,
            tokens=self.tokens,
            positions=self.positions,
            starts=self.starts,
            last=self.last,
            unsorted=self.unsorted,
        )
        return replace(self, **indices, buckets=None if self.buckets is None else self.buckets.to(device))


def copied(device: torch.device, **tensors: Tensor) -> dict[str, Tensor]:
    if device.type == "cuda":
        return {name: x.pin_memory().to(device, non_blocking=True) for name, x in tensors.items()}
    return {name: x.to(device) for name, x in tensors.items()}


def pack(text_length: Int[Tensor, " captions"], row_length: int, *, longest: int, in_buckets: bool) -> Packing:
    """Compute the packing of captions on the CPU, so that reading its sizes does not synchronise with a device.

    Args:
        text_length: number of tokens of each caption, at least 1. If it is on a GPU, reading it synchronises with the
            device.
        row_length: number of columns of the batch of token ids.
        longest: upper bound on the number of tokens per caption; the same for all batches.
        in_buckets: whether to add buckets, for attention that needs padding.
    """
    lengths, order = text_length.cpu().long().sort()
    assert int(lengths[0]) >= 1, "a caption has at least one token"
    assert int(lengths[-1]) <= row_length, "a caption is no longer than its row"
    ends = lengths.cumsum(0)
    starts = ends - lengths
    positions = torch.arange(int(ends[-1])) - starts.repeat_interleave(lengths)

    buckets = None
    if in_buckets:
        steps, counts = ((lengths + _LENGTH_STEP - 1) // _LENGTH_STEP).unique_consecutive(return_counts=True)
        shapes = tuple(
            (count, step * _LENGTH_STEP) for count, step in zip(counts.tolist(), steps.tolist(), strict=True)
        )
        padded = (steps * _LENGTH_STEP).repeat_interleave(counts)
        padded_ends = padded.cumsum(0)
        padded_starts = padded_ends - padded
        place = torch.arange(int(padded_ends[-1])) - padded_starts.repeat_interleave(padded)
        last_place = (lengths - 1).repeat_interleave(padded)
        buckets = Buckets(
            shapes=shapes,
            rows=starts.repeat_interleave(padded) + place.minimum(last_place),
            real=place <= last_place,
            places=padded_starts.repeat_interleave(lengths) + positions,
        )
    return Packing(
        tokens=order.repeat_interleave(lengths) * row_length + positions,
        positions=positions,
        starts=torch.cat([starts, ends[-1:]]).int(),
        last=ends - 1,
        unsorted=order.argsort(),
        longest=longest,
        buckets=buckets,
    )
