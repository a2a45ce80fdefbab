"""Pairs of a batch whose captions or labels are equal, so that they are no true negatives of each other.

Captions are compared by 128-bit keys of their token ids, because ranks pad captions to different widths and a key
depends on the real ids only. Two different captions have the same key with a probability of about 2**-128.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from openslip.distributed import gather
from openslip.errors import UserError

SAME_CAPTION = ("negative", "positive", "ignore")  # values of the config key `same_caption`
_SEEDS = (0x1A2B3C4D5E6F7081, 0x5851F42D4C957F2D)
# The odd constants of SplitMix64, as signed numbers: Steele et al. 2014, doi:10.1145/2660193.2660195, figure 17.
_FIRST, _SECOND, _STEP = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, -0x61C8864680B583EB


class Roles(NamedTuple):
    """Roles of the pairs of one tile; a pair that is neither positive nor ignored is a negative."""

    positive: Bool[Tensor, "rows columns"]
    ignored: Bool[Tensor, "rows columns"] | None


@runtime_checkable
class PairRoles(Protocol):
    """Gives `equal_info_nce` the role of each pair; a pair of a sample's own image and text must be positive."""

    def roles(self, rows: slice, columns: slice) -> Roles:
        """Return the roles of the pairs of some rows and columns, both given as ranges of the global batch."""
        ...


class EqualPairs:
    """Finds the equal samples of the global batch, and gives each pair of an image and a text its role in the loss.

    Two samples are equal if their captions or their labels are. Captions and labels of all ranks are gathered, so the
    constructor is a collective call on all ranks.

    Args:
        captions: keys of this rank's captions, from `caption_keys`.
        labels: class of each of this rank's samples, -1 for a sample without a label; None if labels are ignored.
        role: `positive` or `ignore`. A sample and itself are a positive pair in both cases.
    """

    def __init__(
        self, captions: Int[Tensor, "local 2"], labels: Int[Tensor, " local"] | None = None, *, role: str
    ) -> None:
        # Each half of the keys is a contiguous tensor, because every tile compares slices of each half.
        self.kinds = [tuple(gather(captions, with_grad=False).T.contiguous())]
        if labels is not None:
            labels = gather(labels, with_grad=False)
            places = torch.arange(len(labels), device=labels.device)
            self.kinds.append((torch.where(labels < 0, -1 - places, labels),))
        self.ignores = role == "ignore"

    def roles(self, rows: slice, columns: slice) -> Roles:
        """Return the roles of the pairs of some rows and columns, both given as ranges of the global batch."""
        equal = _all_equal(self.kinds[0], rows, columns)
        for kind in self.kinds[1:]:
            equal |= _all_equal(kind, rows, columns)
        if not self.ignores:
            return Roles(equal, None)
        places = torch.arange(self.kinds[0][0].shape[0], device=equal.device)
        own = places[rows, None] == places[columns]
        return Roles(own, equal & ~own)


def _all_equal(parts: tuple[Tensor, ...], rows: slice, columns: slice) -> Bool[Tensor, "rows columns"]:
    equal = parts[0][rows, None] == parts[0][columns]
    for part in parts[1:]:
        equal &= part[rows, None] == part[columns]
    return equal


def checked_same_caption(value: str) -> str:
    """Return the value of the config key `same_caption`.

    Raises:
        UserError: it is none of `SAME_CAPTION`.
    """
    if value not in SAME_CAPTION:
        raise UserError(f"same_caption={value}: expected negative, positive or ignore")
    return value


def caption_keys(text: Int[Tensor, "batch length"], text_length: Int[Tensor, " batch"]) -> Int[Tensor, "batch 2"]:
    """Return a 128-bit key of each caption, computed from its first `text_length` ids on the device of `text`."""
    places = torch.arange(text.shape[1], device=text.device)
    is_real = places < text_length.to(text.device, non_blocking=True)[:, None]
    # Each id is scrambled together with its place, so the sum over a caption depends on the order of its ids.
    ids = (text.long() + 1) * _STEP  # modulo 2**64, as all arithmetic here
    halves = [(_scrambled(ids ^ _scrambled(places + seed)) * is_real).sum(dim=1) for seed in _SEEDS]
    return torch.stack(halves, dim=1)


def _scrambled(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    x = (x ^ (x >> 30)) * _FIRST
    x = (x ^ (x >> 27)) * _SECOND
    return x ^ (x >> 31)
