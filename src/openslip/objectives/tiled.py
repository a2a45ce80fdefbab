"""InfoNCE and NT-Xent in linear memory: each tile of logits contributes to the softmax of its rows and of its columns.

The functions compute the same values as `info_nce` in `clip.py` and `nt_xent` in `simclr.py`, which call them if there
are many logits. For few logits, those two compute all logits at once.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from openslip.distributed import all_sum, world_size
from openslip.objectives.similarity import Features
from openslip.objectives.tiles import RunningSoftmax, Tiles, cut, own_rows, pair_tiles, tile_size


def tiled_info_nce(
    image: Features, text: Features, scale: Float[Tensor, ""]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute `info_nce` tile by tile.

    Each rank computes the logits of its own images and all texts. The softmax over images is then combined over ranks.
    In the forward pass this needs half the matrix products that `info_nce` needs without tiles. The gradient of `scale`
    on one rank differs from the one without tiles; only their means over ranks agree.
    """
    texts = text.all.detach()
    return _InfoNCE.apply(image.local, text.local, texts, scale, text.gather_with_grad)  # pyright: ignore[reportReturnType]


def tiled_nt_xent(z1: Features, z2: Features, temperature: float) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute `nt_xent` tile by tile, with one matrix of logits for both views.

    The matrix is symmetric, so a rank computes only one triangle of the logits between its own rows. The losses of
    other ranks also contribute to the gradient of these rows. The rank computes this contribution from the softmax
    statistics of the other ranks, so ranks exchange no gradients.
    """
    of_ranks = [z.all.detach().unflatten(0, (world_size(), -1)) for z in (z1, z2)]
    keys = torch.cat(of_ranks, dim=1).flatten(0, 1)  # [2 global, dim], rank by rank
    return _NTXent.apply(z1.local, z2.local, keys, temperature)  # pyright: ignore[reportReturnType]


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, image: Tensor, text: Tensor, texts: Tensor, scale: Tensor, gather_with_grad: bool
    ) -> tuple[Tensor, Tensor]:
        queries = scale * image
        of_images, of_texts = RunningSoftmax.of_rows(image), RunningSoftmax.of_rows(texts)
        for row, column, paired in pair_tiles(image, texts, tile_size(image)):
            tile = queries[row] @ texts[column].T
            of_images.add(row, tile, paired)
            of_texts.add(column, tile.T, paired)
        of_texts.reduce_over_ranks()
        own = own_rows(image)
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
            for row, column, paired in pair_tiles(image, texts, tile_size(image)):
                tile = queries[row] @ texts[column].T
                by_images = ctx.of_images.gradient(row, tile, paired)
                by_texts = ctx.of_texts.gradient(column, tile.T, paired).T
                if ctx.gather_with_grad:  # the keys get gradients too: each side gets the gradients of both softmaxes
                    by_images = by_texts = by_images.add_(by_texts)
                to_queries[row].addmm_(by_images, texts[column])
                to_texts[column].addmm_(by_texts.T, queries[row])
            weight = gradient / (2 * len(image))
            own = own_rows(image)
            to_text = all_sum(to_texts)[own] * weight
            to_scale = (image * to_queries).sum() * weight
            if not ctx.gather_with_grad:  # `to_queries` lacks the effect of `scale` on the texts' softmax
                to_scale += (texts[own] * to_text).sum() / scale
            return to_queries.mul_(scale * weight), to_text, None, to_scale, None


class _NTXent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z1: Tensor, z2: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        z = torch.cat([z1, z2])
        queries = z / temperature
        softmax = RunningSoftmax.of_rows(z)
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
            return to_z1, to_z2, None, None


def _own_tiles(z: Tensor) -> Tiles:
    """Yield rows and columns of each tile on or above the main diagonal, and whether its diagonal holds positives.

    All rows of a tile belong to one view, and all its columns belong to one view. The two views may differ.
    """
    views = len(z) // 2
    size = tile_size(z)
    spans = [*cut(0, views, size), *cut(views, len(z), size)]
    for place, row in enumerate(spans):
        for column in spans[place:]:
            yield row, column, column.start == views + row.start


def _foreign_tiles(z: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield each tile between this rank and other ranks, as rows of `z` and columns of `keys`."""
    own = own_rows(z)
    size = tile_size(z)
    columns = [*cut(0, own.start, size), *cut(own.stop, len(keys), size)]
    for row in cut(0, len(z), size):
        for column in columns:
            yield row, column


def _without_self(row: slice, column: slice, tile: Tensor) -> Tensor:
    return tile.fill_diagonal_(float("-inf")) if row == column else tile
