"""DeViSE: a hinge rank loss of images against fixed word vectors. Frome et al. 2013, NeurIPS 26, equation 1."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features
from openslip.objectives.tiles import sum_over_pairs


class DeViSE(Objective):
    """The DeViSE objective; it reads the batch keys `image`, `text` and `text_length`.

    The loss of an image is the sum over the other captions of the global batch of max(0, margin - cos(image, caption)
    + cos(image, other)): docs/NUMERICS.md#devise. The text tower is meant to be locked, with word vectors as weights.

    Args:
        margin: smallest difference of cosines without loss.
    """

    min_batch_size = 2

    def __init__(self, *, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def setup(self, model: DualEncoder, /) -> None:
        model.logit_scale.requires_grad_(False)  # only probabilities read it

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {
            "image": model.encode_image(batch["image"]),
            "text": model.encode_text(batch["text"], batch["text_length"]),
        }

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, text = (Features(features[name], gather_with_grad=True) for name in ("image", "text"))
        loss = hinge_rank(image, text, self.margin)
        return {"loss": loss, "hinge_loss": loss}


def hinge_rank(image: Features, text: Features, margin: float) -> Float[Tensor, ""]:
    """Return the mean over this rank's images of the sum over all other captions of the hinge loss."""

    def pair_loss(
        image: Float[Tensor, "rows dim"],
        right: Float[Tensor, " rows"],
        row: Int[Tensor, " rows"],
        text: Float[Tensor, "columns dim"],
        column: Int[Tensor, " columns"],
    ) -> Float[Tensor, ""]:
        violation = (margin - right[:, None] + image @ text.T).relu()
        return violation.masked_fill(row[:, None] == column, 0.0).sum()

    right = (image.local * text.local).sum(dim=1)  # cosine with the own caption
    columns = torch.arange(len(text.all), device=text.all.device)
    total = sum_over_pairs(pair_loss, (image.local, right, image.places), (text.all, columns))
    return total / len(image.local)
