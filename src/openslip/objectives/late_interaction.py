"""Late interaction: each token is compared with its most similar token on the other side, tile by tile.

Yao et al. 2021, arXiv:2111.07783 (FILIP), equations 3 to 5. All pairs of tokens of all pairs of samples are compared,
but only one tile of similarities exists at a time. What is kept for the backward pass is the place of each maximum.
"""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from openslip.distributed import gather, largest_of_ranks
from openslip.errors import UserError
from openslip.models.tower import Tokens
from openslip.objectives.similarity import places, unit_length
from openslip.objectives.tiles import cut, tile_size


def token_info_nce(
    image: Tokens, text: Tokens, scale: Float[Tensor, ""], *, top_tokens: int | None, gather_with_grad: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the symmetric InfoNCE loss of token-wise similarities, and the image-to-text accuracy in per cent.

    As in `info_nce`, every sample is compared with those of all ranks, and the mean over ranks is the loss of the
    global batch.

    Args:
        image: token features of this rank's images, before normalisation.
        text: token features of this rank's texts, before normalisation.
        scale: factor by which similarities are multiplied.
        top_tokens: as in `late_interaction_logits`.
        gather_with_grad: as in `late_interaction_logits`.
    """
    per_image, per_text = late_interaction_logits(image, text, top_tokens=top_tokens, gather_with_grad=gather_with_grad)
    own = places(per_image)
    loss = (F.cross_entropy(scale * per_image, own) + F.cross_entropy(scale * per_text, own)) / 2
    accuracy = 100 * (per_image.detach().argmax(dim=-1) == own).to(loss.dtype).mean()
    return loss, accuracy


def checked_top_tokens(count: int | None) -> int | None:
    """Return the config key `top_tokens`.

    Raises:
        UserError: it is less than 1.
    """
    if count is not None and count < 1:
        raise UserError(f"top_tokens={count}: expected at least 1 (16 in the published code), or null for all tokens")
    return count


def late_interaction_logits(
    image: Tokens, text: Tokens, *, top_tokens: int | None, gather_with_grad: bool
) -> tuple[Float[Tensor, "local global"], Float[Tensor, "local global"]]:
    """Return the token-wise similarity of this rank's images with all texts, and of its texts with all images.

    The two are not each other's transpose, even in one process: the first is a mean over the tokens of the image, the
    second over those of the text. No temperature is applied.

    Args:
        image: token features of this rank's images, before normalisation; masked tokens are not compared.
        text: token features of this rank's texts.
        top_tokens: number of tokens of each image and each text that are kept as keys (`top_of_own_pair`); None keeps
            all.
        gather_with_grad: whether gradients flow into the tokens that are gathered from all ranks.
    """
    image, text = (Tokens(unit_tokens(side.features), side.mask) for side in (image, text))
    image_keys, text_keys = (image, text) if top_tokens is None else top_of_own_pair(image, text, top_tokens)
    image_keys, text_keys = (gather_tokens(keys, with_grad=gather_with_grad) for keys in (image_keys, text_keys))
    return late_interaction(image, text_keys), late_interaction(text, image_keys)


def late_interaction(queries: Tokens, keys: Tokens) -> Float[Tensor, "queries keys"]:
    """Return, for each pair of samples, the mean over the query's tokens of the largest product with a key's token.

    Args:
        queries: unit-length token features; a masked token does not count in the mean.
        keys: unit-length token features; a masked token is never the largest. Each sample has at least one token that
            is not masked.
    """
    real = queries.mask.to(queries.features.dtype)  # a quotient of integers would be rounded to float32
    weights = real / real.sum(dim=1, keepdim=True)
    return _MaxSimilarity.apply(queries.features, weights, keys.features, keys.mask)  # pyright: ignore[reportReturnType]


def unit_tokens(x: Float[Tensor, "samples tokens dim"]) -> Float[Tensor, "samples tokens dim"]:
    """Normalise each token's feature to length 1; a feature of zeros, such as that of padding, stays zero."""
    return unit_length(x.flatten(0, 1)).view(x.shape)


@torch.no_grad()
def most_similar(
    similarity: Float[Tensor, "samples tokens others"], tokens: Tokens, others: Tokens, count: int
) -> Tensor:
    """Return the places of the tokens whose summed similarity with the other side's tokens is largest."""
    total = (similarity * others.mask[:, None]).sum(dim=2)
    total = total.masked_fill(~tokens.mask, float("-inf"))
    return total.topk(min(count, total.shape[1]), dim=1).indices


def top_of_own_pair(image: Tokens, text: Tokens, count: int) -> tuple[Tokens, Tokens]:
    """Keep the tokens of each image with the largest summed similarity with its own text's tokens, and vice versa.

    This saves communication; the code of Cui et al. 2022, arXiv:2203.05796, keeps 16 tokens. No gradient flows through
    the choice. A sample with fewer tokens keeps all of them.

    Args:
        image: unit-length token features of images.
        text: those of the images' own texts.
        count: number of tokens kept per image and per text.
    """
    similarity = image.features.detach() @ text.features.detach().transpose(1, 2)
    of_image = most_similar(similarity, image, text, count)
    of_text = most_similar(similarity.transpose(1, 2), text, image, count)
    return at(image, of_image), at(text, of_text)


def at(tokens: Tokens, chosen: Int[Tensor, "samples kept"]) -> Tokens:
    """Return the tokens at these places of each sample."""
    width = tokens.features.shape[2]
    features = tokens.features.gather(1, chosen[:, :, None].expand(-1, -1, width))
    return Tokens(features, tokens.mask.gather(1, chosen))


def gather_tokens(tokens: Tokens, *, with_grad: bool) -> Tokens:
    """Return the tokens of all ranks' samples, padded to the same number of tokens; a collective call on all ranks."""
    missing = largest_of_ranks(tokens.mask.shape[1]) - tokens.mask.shape[1]
    features = F.pad(tokens.features, (0, 0, 0, missing)) if missing else tokens.features
    mask = F.pad(tokens.mask, (0, missing)) if missing else tokens.mask
    everyone = gather(mask.to(torch.uint8), with_grad=False).bool()
    return Tokens(gather(features, with_grad=with_grad), everyone)


class _MaxSimilarity(torch.autograd.Function):
    """The weighted sum over the query's tokens of each token's largest product with a key's token.

    As with `max`, the gradient reaches one of several equal maxima, the first.
    """

    @staticmethod
    def forward(
        ctx,
        queries: Float[Tensor, "queries n dim"],
        weights: Float[Tensor, "queries n"],
        keys: Float[Tensor, "keys m dim"],
        mask: Bool[Tensor, "keys m"],
    ) -> Float[Tensor, "queries keys"]:
        total = queries.new_empty(len(queries), len(keys))
        # Two bytes hold every place up to 32,767; towers with more tokens are not supported.
        best = torch.empty(*queries.shape[:2], len(keys), dtype=torch.int16, device=queries.device)
        for row, column in _tiles(queries, keys):
            similarity = queries[row].flatten(0, 1) @ keys[column].flatten(0, 1).T
            similarity = similarity.view(*weights[row].shape, *mask[column].shape)  # [queries, n, keys, m]
            largest, place = similarity.masked_fill_(~mask[column], float("-inf")).max(dim=3)
            total[row, column] = (weights[row][:, :, None] * largest).sum(dim=1)
            best[row, :, column] = place.to(torch.int16)
        ctx.save_for_backward(queries, weights, keys, best)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        queries, weights, keys, best = ctx.saved_tensors
        to_keys_is_needed = ctx.needs_input_grad[2]
        to_queries = torch.zeros_like(queries, memory_format=torch.contiguous_format)
        to_keys = torch.zeros_like(keys, memory_format=torch.contiguous_format) if to_keys_is_needed else None
        with torch.autocast(queries.device.type, enabled=False):
            for row, column in _tiles(queries, keys):
                place = best[row, :, column].long()[..., None]  # [queries, n, keys, 1]
                share = (weights[row][:, :, None] * gradient[row, None, column])[..., None]
                spread = share.new_zeros(*place.shape[:3], keys.shape[1]).scatter_(3, place, share)
                spread = spread.flatten(2).flatten(0, 1)  # [queries n, keys m]
                to_queries[row].flatten(0, 1).addmm_(spread, keys[column].flatten(0, 1))
                if to_keys is not None:
                    to_keys[column].flatten(0, 1).addmm_(spread.T, queries[row].flatten(0, 1))
        return to_queries, None, to_keys, None


def _tiles(queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield slices of queries and keys for each tile: each has about `tile_size` tokens, and at least one sample."""
    rows, columns = (cut(0, len(x), max(1, tile_size(x) // x.shape[1])) for x in (queries, keys))
    return itertools.product(rows, columns)
