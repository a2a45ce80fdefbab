"""Losses over all pairs in linear memory: logits exist one tile at a time, forward and backward."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from openslip.distributed import all_max, all_sum, gather, rank, world_size

PLAIN_UP_TO = 512 * 512  # logits on a rank; from here on tiles are faster (measured on a CPU)
CPU_TILE = 512  # rows and columns; 256 to 768 are as fast, while a tile fits the second-level cache
GPU_TILE = 4096  # work enough to hide the launch of a kernel


def is_large(rows: int) -> bool:
    """Whether so many rows on every rank, against those of all ranks, make too many logits for the plain form."""
    return rows * rows * world_size() > PLAIN_UP_TO


def sum_over_pairs(
    pair_loss: Callable[..., Float[Tensor, ""]], rows: tuple[Tensor, ...], columns: tuple[Tensor, ...]
) -> Float[Tensor, ""]:
    """Sum of a loss that adds up over pairs of rows and columns, such as SigLIP's; differentiable in all it uses.

    Args:
        pair_loss: called with a part of each of `rows`, then of each of `columns`; what else it needs, it closes over.
        rows: tensors of this rank's samples, cut along their first dimension: features, places, labels.
        columns: tensors of all ranks' samples.
    """
    if not is_large(len(rows[0])):
        return pair_loss(*rows, *columns)
    size = tile_size(rows[0])
    total = rows[0].new_zeros(())
    for row, column in itertools.product(cut(0, len(rows[0]), size), cut(0, len(columns[0]), size)):
        parts = (*(x[row] for x in rows), *(x[column] for x in columns))
        tile: Any = checkpoint(pair_loss, *parts, use_reentrant=False)
        total = total + tile
    return total


class RunningSoftmax(NamedTuple):
    """Softmax of every row of a matrix of which tiles are added one after the other.

    Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3.
    """

    peak: Float[Tensor, " rows"]
    total: Float[Tensor, " rows"]  # of exp(logit - peak)
    positive: Float[Tensor, " rows"]
    leads: Bool[Tensor, " rows"]  # the positive is the largest so far

    @staticmethod
    def of_rows(x: Float[Tensor, "rows dim"]) -> "RunningSoftmax":
        lowest = torch.finfo(x.dtype).min  # not infinite: every logit of a tile may be masked
        zeros = x.new_zeros(len(x))
        leads = torch.zeros_like(zeros, dtype=torch.bool)
        return RunningSoftmax(torch.full_like(zeros, lowest), zeros, zeros.clone(), leads)

    def add(self, rows: slice, tile: Float[Tensor, "rows columns"], paired: bool) -> None:
        """The next columns of these rows; the positives of a paired tile are its diagonal."""
        peak, total, positive, leads = (part[rows] for part in self)
        highest = tile.amax(dim=1)
        passed = highest > peak  # the first of equals wins, as in argmax
        leads &= ~passed
        if paired:
            positive.copy_(tile.diagonal())
            leads.copy_(passed & (tile.argmax(dim=1) == torch.arange(len(tile), device=tile.device)))
        highest = torch.maximum(highest, peak)
        total.mul_(torch.exp(peak - highest)).add_((tile - highest[:, None]).exp_().sum(dim=1))
        peak.copy_(highest)

    def cross_entropy(self) -> Float[Tensor, " rows"]:
        return self.peak - self.positive + self.total.log()

    def gradient(self, rows: slice, tile: Float[Tensor, "rows columns"], paired: bool) -> Float[Tensor, "rows columns"]:
        """Of the sum of the rows' cross-entropies with respect to the tile."""
        # Not exp(tile - logsumexp): in float32 a large logsumexp is too coarse for the rows to add up to 1.
        gradient = (tile - self.peak[rows, None]).exp_().mul_(self.total[rows, None].reciprocal())
        if paired:
            gradient.diagonal().sub_(1)
        return gradient

    def reduce_over_ranks(self) -> None:
        """Each rank has seen other columns: the softmax of all."""
        peak = all_max(self.peak)
        self.total.mul_(torch.exp(self.peak - peak))
        self.total.copy_(all_sum(self.total))
        self.peak.copy_(peak)

    def of_all_ranks(self) -> "RunningSoftmax":
        """What `gradient` needs, for the rows of all ranks."""
        return self._replace(peak=gather(self.peak, with_grad=False), total=gather(self.total, with_grad=False))


def own_rows(x: Tensor) -> slice:
    """Where this rank's rows stand among those of all ranks."""
    return slice(rank() * len(x), (rank() + 1) * len(x))


def cut(start: int, stop: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size`."""
    return [slice(place, min(place + size, stop)) for place in range(start, stop, size)]


def tile_size(x: Tensor) -> int:
    """Rows and columns of a tile on the device of `x`."""
    return CPU_TILE if x.device.type == "cpu" else GPU_TILE
