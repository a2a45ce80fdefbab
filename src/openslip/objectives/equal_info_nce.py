"""InfoNCE in which equal samples are positives of each other or are ignored, in linear memory.

With positives, it is the loss of UniCL: the targets of a row are uniform over its positives. Yang et al. 2022,
arXiv:2204.03610, equations 2 to 4, as a mean over rows and over both directions. Without equal samples, it is CLIP's.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from openslip.distributed import all_sum
from openslip.objectives.equal_pairs import PairRoles
from openslip.objectives.similarity import Features
from openslip.objectives.tiles import RunningSoftmax, own_rows, pair_tiles, size_of_tiles


def equal_info_nce(
    image: Features, text: Features, scale: Float[Tensor, ""], equal: PairRoles
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the loss of this rank's rows, and how often the most similar text is a positive, in per cent.

    The mean over ranks is the loss of the global batch. As with `tiled_info_nce`, the gradient of `scale` on one rank
    has no meaning; its mean over ranks is that of the global batch.

    Args:
        image: this rank's image features; they are gathered over ranks when needed.
        text: this rank's text features; they are gathered over ranks when needed.
        scale: factor by which cosines are multiplied, exp(logit_scale).
        equal: which images and texts of different samples belong together, and the role of such a pair.
    """
    texts = text.all.detach()
    return _EqualInfoNCE.apply(image.local, text.local, texts, scale, equal, text.gather_with_grad)  # pyright: ignore[reportReturnType]


class _RunningTargets(NamedTuple):
    """Cross-entropy of each row with targets that are uniform over its positives; `add` includes one more tile."""

    softmax: RunningSoftmax  # `positive` holds the sum of the logits of all positives
    num_positives: Float[Tensor, " rows"]  # number of positives

    @staticmethod
    def of_rows(x: Float[Tensor, "rows dim"]) -> "_RunningTargets":
        return _RunningTargets(RunningSoftmax.of_rows(x), x.new_zeros(len(x)))

    def add(self, rows: slice, tile: Float[Tensor, "rows columns"], is_positive: Bool[Tensor, "rows columns"]) -> None:
        peak = self.softmax.peak[rows].clone()
        self.softmax.add(rows, tile, False)
        leads_now = is_positive.gather(1, tile.argmax(dim=1, keepdim=True)).squeeze(1)
        self.softmax.leads[rows] |= (self.softmax.peak[rows] > peak) & leads_now
        self.softmax.positive[rows] += torch.where(is_positive, tile, 0.0).sum(dim=1)
        self.num_positives[rows] += is_positive.sum(dim=1)

    def reduce_over_ranks(self) -> None:
        """Combine the statistics over ranks; each rank has added different columns of the same rows."""
        self.softmax.reduce_over_ranks()
        self.softmax.positive.copy_(all_sum(self.softmax.positive))
        self.num_positives.copy_(all_sum(self.num_positives))

    def cross_entropy(self) -> Float[Tensor, " rows"]:
        return self.softmax.peak - self.softmax.positive / self.num_positives + self.softmax.total.log()

    def gradient(
        self, rows: slice, tile: Float[Tensor, "rows columns"], is_positive: Bool[Tensor, "rows columns"]
    ) -> Float[Tensor, "rows columns"]:
        """Return the gradient of the sum of these rows' cross-entropies with respect to the logits of the tile."""
        return self.softmax.gradient(rows, tile, False).sub_(is_positive / self.num_positives[rows, None])


class _EqualInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, image: Tensor, text: Tensor, texts: Tensor, scale: Tensor, equal: PairRoles, gather_with_grad: bool
    ) -> tuple[Tensor, Tensor]:
        of_images, of_texts = _RunningTargets.of_rows(image), _RunningTargets.of_rows(texts)
        for row, column, tile, is_positive in _tiles(image, texts, scale, equal):
            of_images.add(row, tile, is_positive)
            of_texts.add(column, tile.T, is_positive.T)
        of_texts.reduce_over_ranks()
        loss = (of_images.cross_entropy().mean() + of_texts.cross_entropy()[own_rows(image)].mean()) / 2
        accuracy = 100 * of_images.softmax.leads.to(loss.dtype).mean()
        ctx.mark_non_differentiable(accuracy)
        ctx.save_for_backward(image, texts, scale)
        ctx.of_images, ctx.of_texts, ctx.equal, ctx.gather_with_grad = of_images, of_texts, equal, gather_with_grad
        return loss, accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        image, texts, scale = ctx.saved_tensors
        with torch.autocast(image.device.type, enabled=False):
            to_queries, to_texts = torch.zeros_like(image), torch.zeros_like(texts)
            for row, column, tile, is_positive in _tiles(image, texts, scale, ctx.equal):
                by_images = ctx.of_images.gradient(row, tile, is_positive)
                by_texts = ctx.of_texts.gradient(column, tile.T, is_positive.T).T
                if ctx.gather_with_grad:  # the keys get gradients too: each side gets the gradients of both softmaxes
                    by_images = by_texts = by_images.add_(by_texts)
                to_queries[row].addmm_(by_images, texts[column])
                to_texts[column].addmm_(by_texts.T, image[row])
            weight = gradient / (2 * len(image))
            own = own_rows(image)
            to_text = all_sum(to_texts)[own] * (scale * weight)
            to_scale = (image * to_queries).sum() * weight
            if not ctx.gather_with_grad:  # `to_queries` lacks the effect of `scale` on the texts' softmax
                to_scale += (texts[own] * to_text).sum() / scale
            return to_queries.mul_(scale * weight), to_text, None, to_scale, None, None


def _tiles(
    image: Tensor, texts: Tensor, scale: Tensor, equal: PairRoles
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Yield rows and columns of each tile, its logits (-inf for ignored pairs), and which of its pairs are positive."""
    first = own_rows(image).start
    for row, column, _ in pair_tiles(image, texts, size_of_tiles(image, texts)):
        tile = (scale * image[row]) @ texts[column].T
        positive, ignored = equal.roles(slice(first + row.start, first + row.stop), column)
        yield row, column, tile if ignored is None else tile.masked_fill_(ignored, float("-inf")), positive
