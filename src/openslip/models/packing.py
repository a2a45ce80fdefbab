"""Captions without their padding: one row per real token, captions of similar length side by side."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

# A caption is padded to a multiple of it for attention, whatever else is in the batch, so alone it gets the same sums.
_LENGTH_STEP = 8


@dataclass(frozen=True)
class Buckets:
    """For attention that cannot do without padding: captions of similar length together, a few padded tensors.

    Attributes:
        shapes: captions and padded length of each bucket.
        rows: packed row of every padded position, bucket after bucket; padding repeats the caption's last token.
        real: false where a position is padding.
        places: padded position of each packed row.
    """

    shapes: tuple[tuple[int, int], ...]
    rows: Int[Tensor, " positions"]
    real: Bool[Tensor, " positions"]
    places: Int[Tensor, " rows"]


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch of captions lie among the packed rows; captions are sorted by length.

    Attributes:
        tokens: place of each packed row in the flattened batch.
        positions: of each packed row in its caption.
        starts: first packed row of each sorted caption, and the number of rows.
        last: packed row of each sorted caption's last token.
        unsorted: place of each caption of the batch among the sorted ones.
        longest: no caption has more tokens.
        buckets: None where attention needs no padding.
    """

    tokens: Int[Tensor, " rows"]
    positions: Int[Tensor, " rows"]
    starts: Int32[Tensor, " captions_and_end"]
    last: Int[Tensor, " captions"]
    unsorted: Int[Tensor, " captions"]
    longest: int
    buckets: Buckets | None


def pack(
    text_length: Int[Tensor, " captions"], row_length: int, device: torch.device, *, longest: int, in_buckets: bool
) -> Packing:
    """The packing of captions of these lengths, made on the CPU: to know its sizes the device need not be waited for.

    Args:
        text_length: tokens of each caption, best on the CPU; elsewhere they cost a wait.
        row_length: columns of the batch of token ids.
        device: where the packing is used.
        longest: a bound of the lengths, the same for all batches.
        in_buckets: whether attention needs padding.
    """
    lengths, order = text_length.cpu().long().sort()
    assert int(lengths[0]) >= 1, "a caption has at least the token that is pooled"
    assert int(lengths[-1]) <= row_length, "a caption is no longer than its row"
    ends = lengths.cumsum(0)
    starts = ends - lengths
    positions = torch.arange(int(ends[-1])) - starts.repeat_interleave(lengths)

    def to_device(x: Tensor) -> Tensor:
        return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)

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
            rows=to_device(starts.repeat_interleave(padded) + place.minimum(last_place)),
            real=to_device(place <= last_place),
            places=to_device(padded_starts.repeat_interleave(lengths) + positions),
        )
    return Packing(
        tokens=to_device(order.repeat_interleave(lengths) * row_length + positions),
        positions=to_device(positions),
        starts=to_device(torch.cat([starts, ends[-1:]]).int()),
        last=to_device(ends - 1),
        unsorted=to_device(order.argsort()),
        longest=longest,
        buckets=buckets,
    )
