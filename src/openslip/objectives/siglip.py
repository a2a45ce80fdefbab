"""SigLIP: every pair is its own binary problem. Zhai et al. 2023, arXiv:2303.15343, algorithm 1."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from openslip.distributed import all_sum
from openslip.errors import UserError
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import clamp_logit_scale
from openslip.objectives.equal_pairs import EqualPairs, Roles, caption_keys, checked_same_caption
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features
from openslip.objectives.tiles import own_rows, pair_tiles, size_of_tiles

# Above this value softplus(z) is z: exp(-40) is below the rounding error of 40 in float64. Below it, exp(z) does not
# overflow in float32.
_LINEAR_FROM = 40


class SigLIP(Objective):
    """The SigLIP objective; it reads the batch keys `image`, `text` and `text_length`, and needs a logit bias.

    Args:
        same_caption: role of an image and another sample's text if both samples have the same caption: `negative` as
            published, `positive`, or `ignore`.
        max_logit_scale: largest value of `logit_scale`, which is clamped to [0, max_logit_scale] after each step; None
            for no clamp, as published.

    Raises:
        UserError: `same_caption` has another value; in `setup`, the model has no logit bias.
    """

    min_batch_size = 2

    def __init__(self, *, same_caption: str, max_logit_scale: float | None) -> None:
        super().__init__()
        self.same_caption = checked_same_caption(same_caption)
        self.max_logit_scale = max_logit_scale

    def setup(self, model: DualEncoder, /) -> None:
        if model.logit_bias is None:
            raise UserError("model.logit_bias_init=null: SigLIP needs a logit bias; use model.logit_bias_init=-10")

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        features = {
            "image": model.encode_image(batch["image"]),
            "text": model.encode_text(batch["text"], batch["text_length"]),
        }
        if self.same_caption != "negative":
            features["caption"] = caption_keys(batch["text"], batch["text_length"])
        return features

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        assert model.logit_bias is not None
        image, text = (Features(features[name], gather_with_grad=True) for name in ("image", "text"))
        equal = EqualPairs(features["caption"], role=self.same_caption) if "caption" in features else None
        loss, accuracy = sigmoid_loss(image, text, model.logit_scale.exp(), model.logit_bias, equal)
        return {"loss": loss, "siglip_loss": loss, "siglip_acc": accuracy}

    def after_step(self, model: DualEncoder, /) -> None:
        if self.max_logit_scale is not None:
            clamp_logit_scale(model, self.max_logit_scale)


def sigmoid_loss(
    image: Features, text: Features, scale: Float[Tensor, ""], bias: Float[Tensor, ""], equal: EqualPairs | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the sigmoid loss of this rank's images, and the image-to-text accuracy in per cent, in linear memory.

    Each image is compared with the texts of all ranks. The loss is the sum over these pairs divided by the number of
    images, so the mean over ranks is the loss of the global batch. The accuracy is how often the most similar text is a
    positive.

    Args:
        image: this rank's image features.
        text: this rank's text features; they are gathered over ranks, with gradient.
        scale: factor by which cosines are multiplied, exp(logit_scale).
        bias: number that is added to the logits.
        equal: which samples are equal, and the role of a pair of them; None: every other sample is a negative.
    """
    return _Sigmoid.apply(image.local, text.local, text.all.detach(), scale, bias, equal)  # pyright: ignore[reportReturnType]


class _Sigmoid(torch.autograd.Function):
    """Loss and gradient in one pass over the tiles: the gradient of each pair needs only its own logit."""

    @staticmethod
    def forward(
        ctx, image: Tensor, text: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, equal: EqualPairs | None
    ) -> tuple[Tensor, Tensor]:
        with_gradient = any(ctx.needs_input_grad)
        to_queries, to_texts = (torch.zeros_like(x) if with_gradient else x for x in (image, texts))
        losses, to_bias = image.new_zeros(len(image)), image.new_zeros(len(image))
        peak, leads = torch.full_like(losses, float("-inf")), torch.zeros_like(losses, dtype=torch.bool)
        own = own_rows(image)
        for row, column, paired in pair_tiles(image, texts, size_of_tiles(image, texts)):
            queries = scale * image[row]
            tile = torch.addmm(bias, queries, texts[column].T)
            roles = None if equal is None else equal.roles(slice(own.start + row.start, own.start + row.stop), column)
            if roles is not None and roles.ignored is not None:
                tile.masked_fill_(roles.ignored, float("-inf"))  # loss and gradient are then 0
            _follow_peak(peak[row], leads[row], tile, roles, paired)
            _negate_positives(tile, roles, paired)
            losses[row] += F.softplus(tile, threshold=_LINEAR_FROM).sum(dim=1)
            if with_gradient:
                to_logits = _negate_positives(tile.sigmoid_(), roles, paired)
                to_queries[row].addmm_(to_logits, texts[column])
                to_texts[column].addmm_(to_logits.T, queries)
                to_bias[row] += to_logits.sum(dim=1)
        accuracy = 100 * leads.to(losses.dtype).mean()
        ctx.mark_non_differentiable(accuracy)
        if with_gradient:
            to_scale = (image * to_queries).sum()
            ctx.save_for_backward(to_queries.mul_(scale), all_sum(to_texts)[own], to_scale, to_bias.sum())
        return losses.mean(), accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        to_image, to_text, to_scale, to_bias = ctx.saved_tensors
        weight = gradient / len(to_image)
        return to_image * weight, to_text * weight, None, to_scale * weight, to_bias * weight, None


def _negate_positives(
    tile: Float[Tensor, "rows columns"], roles: Roles | None, paired: bool
) -> Float[Tensor, "rows columns"]:
    """Negate the entries of positive pairs in place; without `roles` they are the diagonal of a `paired` tile."""
    if roles is not None:
        return tile.copy_(torch.where(roles.positive, -tile, tile))
    if paired:
        tile.diagonal().neg_()
    return tile


def _follow_peak(
    peak: Float[Tensor, " rows"],
    leads: Bool[Tensor, " rows"],
    tile: Float[Tensor, "rows columns"],
    roles: Roles | None,
    paired: bool,
) -> None:
    """Update each row's largest logit, and whether it is that of a positive; among equal logits, take the first."""
    highest = tile.amax(dim=1)
    passed = highest > peak
    leads &= ~passed
    if roles is not None:
        leads |= passed & roles.positive.gather(1, tile.argmax(dim=1, keepdim=True)).squeeze(1)
    elif paired:
        leads |= passed & (tile.argmax(dim=1) == torch.arange(len(tile), device=tile.device))
    peak.copy_(torch.maximum(peak, highest))
