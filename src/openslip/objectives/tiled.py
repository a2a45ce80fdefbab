"""InfoNCE and NT-Xent in linear memory: logits exist one tile at a time, and a tile serves its rows and its columns.

The same functions as the plain forms in `clip.py` and `simclr.py`, which serve where logits are few. The running
softmax is Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from openslip.distributed import all_max, all_sum, gather, rank, world_size

PLAIN_UP_TO = 512 * 512  # logits on a rank; from here on tiles are faster (measured on a CPU)
CPU_TILE = 512  # rows and columns; 256 to 768 are as fast, while a tile fits the second-level cache
GPU_TILE = 4096  # work enough to hide the launch of a kernel


def is_large(rows: int) -> bool:
    """Whether so many rows on every rank, against those of all ranks, make too many logits for the plain form."""
    return rows * rows * world_size() > PLAIN_UP_TO


def tiled_info_nce(
    image: Float[Tensor, "local embed"],
    text: Float[Tensor, "local embed"],
    scale: Float[Tensor, ""],
    *,
    gather_with_grad: bool,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`clip_loss` of features of length 1.

    A rank makes the logits of its images and all texts; the texts' softmax is put together over ranks. That is half the
    products of the plain form. The gradient of `scale` is this rank's share: only its mean over ranks has a meaning.
    """
    return _InfoNCE.apply(image, text, scale, gather_with_grad)  # pyright: ignore[reportReturnType]


def tiled_nt_xent(
    z1: Float[Tensor, "local dim"], z2: Float[Tensor, "local dim"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`nt_xent` of features of length 1.

    The logits are symmetric: of those between a rank's own rows only a triangle is made, and what the rows of other
    ranks add to a gradient follows from their softmax, so that no gradient travels between ranks.
    """
    return _NTXent.apply(z1, z2, temperature)  # pyright: ignore[reportReturnType]


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image: Tensor, text: Tensor, scale: Tensor, gather_with_grad: bool) -> tuple[Tensor, Tensor]:
        texts = gather(text, with_grad=False)  # [world, embed]
        queries = scale * image
        of_images, of_texts = _Softmax.of_rows(image), _Softmax.of_rows(texts)
        for row, column, paired in _info_nce_tiles(image, texts):
            tile = queries[row] @ texts[column].T
            of_images.add(row, tile, paired)
            of_texts.add(column, tile.T, paired)
        of_texts.reduce_over_ranks()
        own = _own_rows(image)
        loss = (of_images.cross_entropy().mean() + of_texts.cross_entropy()[own].mean()) / 2
        accuracy = 100 * of_images.leads.to(loss.dtype).mean()
        ctx.mark_non_differentiable(accuracy)
        ctx.save_for_backward(image, texts, scale)
        ctx.of_images, ctx.of_texts, ctx.gather_with_grad = of_images, of_texts, gather_with_grad
        return loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        image, texts, scale = ctx.saved_tensors
        with torch.autocast(image.device.type, enabled=False):
            queries = scale * image
            to_queries, to_texts = torch.zeros_like(image), torch.zeros_like(texts)
            for row, column, paired in _info_nce_tiles(image, texts):
                tile = queries[row] @ texts[column].T
                by_images = ctx.of_images.gradient(row, tile, paired)
                by_texts = ctx.of_texts.gradient(column, tile.T, paired).T
                if ctx.gather_with_grad:  # the keys learn too: both softmaxes reach both sides
                    by_images = by_texts = by_images.add_(by_texts)
                to_queries[row].addmm_(by_images, texts[column])
                to_texts[column].addmm_(by_texts.T, queries[row])
            weight = gradient / (2 * len(image))
            own = _own_rows(image)
            to_text = all_sum(to_texts)[own] * weight
            to_scale = (image * to_queries).sum() * weight
            if not ctx.gather_with_grad:  # the images' softmax alone has reached the queries
                to_scale += (texts[own] * to_text).sum() / scale
            return to_queries.mul_(scale * weight), to_text, to_scale, None


class _NTXent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        z = torch.cat([z1, z2])
        keys = gather(z, with_grad=False)  # [2 world, dim]
        queries = z / temperature
        softmax = _Softmax.of_rows(z)
        for row, column, paired in _own_tiles(z):
            tile = _without_self(row, column, queries[row] @ z[column].T)
            softmax.add(row, tile, paired)
            if column != row:
                softmax.add(column, tile.T, paired)
        for row, column in _foreign_tiles(z, keys):
            softmax.add(row, queries[row] @ keys[column].T, False)
        loss = softmax.cross_entropy().mean()
        accuracy = 100 * softmax.leads[: len(z1)].to(loss.dtype).mean()
        ctx.mark_non_differentiable(accuracy)
        ctx.save_for_backward(z, keys)
        ctx.softmax, ctx.temperature = softmax, temperature
        return loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        z, keys = ctx.saved_tensors
        softmax = ctx.softmax
        with torch.autocast(z.device.type, enabled=False):
            queries = z / ctx.temperature
            to_z = torch.zeros_like(z)
            for row, column, paired in _own_tiles(z):
                tile = _without_self(row, column, queries[row] @ z[column].T)
                both = softmax.gradient(row, tile, paired).add_(softmax.gradient(column, tile.T, paired).T)
                to_z[row].addmm_(both, z[column])
                if column != row:
                    to_z[column].addmm_(both.T, z[row])
            everyone = softmax.of_all_ranks()
            for row, column in _foreign_tiles(z, keys):
                tile = queries[row] @ keys[column].T
                both = softmax.gradient(row, tile, False).add_(everyone.gradient(column, tile.T, False).T)
                to_z[row].addmm_(both, keys[column])
            to_z1, to_z2 = to_z.mul_(gradient / (len(z) * ctx.temperature)).chunk(2)
            return to_z1, to_z2, None


class _Softmax(NamedTuple):
    """Softmax of every row of a matrix whose tiles come by from left to right."""

    peak: Float[Tensor, " rows"]
    total: Float[Tensor, " rows"]  # of exp(logit - peak)
    positive: Float[Tensor, " rows"]
    leads: Bool[Tensor, " rows"]  # the positive is the largest so far

    @staticmethod
    def of_rows(x: Float[Tensor, "rows dim"]) -> "_Softmax":
        lowest = torch.finfo(x.dtype).min  # not infinite: every logit of a tile may be masked
        zeros = x.new_zeros(len(x))
        return _Softmax(torch.full_like(zeros, lowest), zeros, zeros.clone(), torch.zeros_like(zeros, dtype=torch.bool))

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

    def of_all_ranks(self) -> "_Softmax":
        """What `gradient` needs, for the rows of all ranks."""
        return self._replace(peak=gather(self.peak, with_grad=False), total=gather(self.total, with_grad=False))


Tiles = Iterator[tuple[slice, slice, bool]]


def _info_nce_tiles(image: Tensor, texts: Tensor) -> Tiles:
    """Rows and columns of all tiles, from left to right, and whether the diagonal holds the positives."""
    own = _own_rows(image)
    size = _tile_size(image)
    columns = [*_cut(0, own.start, size), *_cut(own.start, own.stop, size), *_cut(own.stop, len(texts), size)]
    for row in _cut(0, len(image), size):
        for column in columns:
            yield row, column, column.start == own.start + row.start


def _own_tiles(z: Tensor) -> Tiles:
    """Rows and columns of the tiles on and above the diagonal; no tile crosses from one view to the other."""
    views = len(z) // 2
    size = _tile_size(z)
    spans = [*_cut(0, views, size), *_cut(views, len(z), size)]
    for place, row in enumerate(spans):
        for column in spans[place:]:
            yield row, column, column.start == views + row.start


def _foreign_tiles(z: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows of `z` and columns of the other ranks' `keys`."""
    own = _own_rows(z)
    size = _tile_size(z)
    columns = [*_cut(0, own.start, size), *_cut(own.stop, len(keys), size)]
    for row in _cut(0, len(z), size):
        for column in columns:
            yield row, column


def _without_self(row: slice, column: slice, tile: Tensor) -> Tensor:
    return tile.fill_diagonal_(float("-inf")) if row == column else tile


def _own_rows(x: Tensor) -> slice:
    """Where this rank's rows stand among those of all ranks."""
    return slice(rank() * len(x), (rank() + 1) * len(x))


def _cut(start: int, stop: int, size: int) -> list[slice]:
    return [slice(place, min(place + size, stop)) for place in range(start, stop, size)]


def _tile_size(x: Tensor) -> int:
    return CPU_TILE if x.device.type == "cpu" else GPU_TILE
