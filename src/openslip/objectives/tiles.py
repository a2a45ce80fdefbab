"""Losses over all pairs in linear memory: only one tile of logits exists at a time, forward and backward."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from openslip.distributed import all_max, all_sum, gather, rank, world_size

PLAIN_UP_TO = 512 * 512  # logits per rank; above this number, tiles are faster than all logits at once (on a CPU)
CPU_TILE = 512  # rows and columns; 256 to 768 are equally fast, because such a tile fits the second-level cache
GPU_TILE = 4096  # rows and columns; such a tile has enough work to hide the time to launch a kernel


Tiles = Iterator[tuple[slice, slice, bool]]


def is_large(rows: int) -> bool:
    """Whether a rank with `rows` rows must compute logits in tiles; a row is compared with the rows of all ranks."""
    return rows * rows * world_size() > PLAIN_UP_TO


def sum_over_pairs(
    pair_loss: Callable[..., Float[Tensor, ""]], rows: tuple[Tensor, ...], columns: tuple[Tensor, ...]
) -> Float[Tensor, ""]:
    """Sum a loss such as SigLIP's over all pairs of rows and columns; gradients reach all tensors of `pair_loss`.

    Args:
        pair_loss: function that returns the summed loss of one tile. Its arguments are one chunk of each tensor in
            `rows`, then one chunk of each tensor in `columns`. As a closure, it may also use other tensors.
        rows: tensors of this rank's samples (features, indices, labels), cut along their first dimension.
        columns: tensors of all ranks' samples, cut along their first dimension.
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


def sum_over_rows(row_loss: Callable[..., tuple[Tensor, ...]], rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Sum what a loss returns for all rows; in a large batch, only the logits of some rows exist at a time.

    Args:
        row_loss: function that returns sums over the rows of one chunk. Its arguments are one chunk of each tensor in
            `rows`. As a closure, it may also use other tensors, and gradients reach all of them.
        rows: tensors of this rank's samples, cut along their first dimension.
    """
    if not is_large(len(rows[0])):
        return row_loss(*rows)
    chunks: list[Any] = [
        checkpoint(row_loss, *(x[chunk] for x in rows), use_reentrant=False)
        for chunk in cut(0, len(rows[0]), tile_size(rows[0]))
    ]
    return tuple(torch.stack(parts).sum() for parts in zip(*chunks, strict=True))


class RunningSoftmax(NamedTuple):
    """Softmax of each row of a matrix, computed step by step: each call of `add` includes one more tile.

    Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3.
    """

    peak: Float[Tensor, " rows"]
    total: Float[Tensor, " rows"]  # sum of exp(logit - peak)
    positive: Float[Tensor, " rows"]  # logit of the positive pair
    leads: Bool[Tensor, " rows"]  # whether the positive is the largest logit so far

    @staticmethod
    def of_rows(x: Float[Tensor, "rows dim"]) -> "RunningSoftmax":
        lowest = torch.finfo(x.dtype).min  # not -inf, because -inf - -inf is NaN where a tile is wholly masked
        zeros = x.new_zeros(len(x))
        leads = torch.zeros_like(zeros, dtype=torch.bool)
        return RunningSoftmax(torch.full_like(zeros, lowest), zeros, zeros.clone(), leads)

    def add(self, rows: slice, tile: Float[Tensor, "rows columns"], paired: bool) -> None:
        """Add the next columns of these rows; in a `paired` tile the diagonal holds the positives."""
        peak, total, positive, leads = (part[rows] for part in self)
        highest = tile.amax(dim=1)
        passed = highest > peak  # if logits are equal, the first one wins, as in argmax
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
        """Return the gradient of the sum of these rows' cross-entropies with respect to the logits of the tile."""
        # Not exp(tile - logsumexp): a large logsumexp is rounded in float32, and the rows would then not sum to 1.
        gradient = (tile - self.peak[rows, None]).exp_().mul_(self.total[rows, None].reciprocal())
        if paired:
            gradient.diagonal().sub_(1)
        return gradient

    def reduce_over_ranks(self) -> None:
        """Combine `peak` and `total` over ranks; each rank has added different columns of the same rows."""
        peak = all_max(self.peak)
        self.total.mul_(torch.exp(self.peak - peak))
        self.total.copy_(all_sum(self.total))
        self.peak.copy_(peak)

    def of_all_ranks(self) -> "RunningSoftmax":
        """Return the softmax of all ranks' rows; only the fields that `gradient` reads are gathered."""
        return self._replace(peak=gather(self.peak, with_grad=False), total=gather(self.total, with_grad=False))


def own_rows(x: Tensor) -> slice:
    """Return the range of this rank's rows among the rows of all ranks."""
    return slice(rank() * len(x), (rank() + 1) * len(x))


def cut(start: int, stop: int, size: int) -> list[slice]:
    """Split [start, stop) into consecutive slices of length `size` or less."""
    return [slice(place, min(place + size, stop)) for place in range(start, stop, size)]


def tile_size(x: Tensor) -> int:
    """Return the number of rows of a tile on the device of `x`; the number of columns is the same."""
    return CPU_TILE if x.device.type == "cpu" else GPU_TILE


def size_of_tiles(rows: Tensor, columns: Tensor) -> int:
    """Return the size of tiles, in rows and in columns, for a loss that is always computed in tiles.

    If there are few logits, this is the number of rows or of columns, whichever is larger: `pair_tiles` then cuts only
    where the columns of this rank's own samples begin and end.
    """
    return tile_size(rows) if is_large(len(rows)) else max(len(rows), len(columns))


def pair_tiles(rows: Tensor, columns: Tensor, size: int) -> Tiles:
    """Yield each tile's rows and columns, from left to right, and whether its diagonal holds pairs of the same sample.

    Args:
        rows: features of this rank's samples.
        columns: features of the samples of all ranks.
        size: largest number of rows, and of columns, of a tile.
    """
    own = own_rows(rows)
    places = [*cut(0, own.start, size), *cut(own.start, own.stop, size), *cut(own.stop, len(columns), size)]
    for row in cut(0, len(rows), size):
        for column in places:
            yield row, column, column.start == own.start + row.start
