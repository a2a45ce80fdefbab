"""CLIP: symmetric InfoNCE with a learnable temperature. Radford et al. 2021, arXiv:2103.00020, figure 3."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.equal_info_nce import equal_info_nce
from openslip.objectives.equal_pairs import EqualPairs, caption_keys, checked_same_caption
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features
from openslip.objectives.tiled import tiled_info_nce
from openslip.objectives.tiles import is_large


class CLIP(Objective):
    """The CLIP objective; it reads the batch keys `image`, `text` and `text_length`.

    Args:
        gather_with_grad: whether gradients also flow into the keys. The keys are the features of all ranks, with which
            each row is compared. True gives the exact gradient of the global batch. False detaches the keys for any
            number of ranks, so that one rank computes the update of the published runs on 64 GPUs:
            docs/NUMERICS.md#gather.
        max_logit_scale: largest value of `logit_scale`, a natural logarithm. After each step, `logit_scale` is clamped
            to [0, max_logit_scale].
        same_caption: role of an image and another sample's text if both samples have the same caption: `negative` as
            published, `positive`, or `ignore`. Without randomness in the text tower, `positive` gives the same loss as
            `negative`: docs/NUMERICS.md#same_caption.

    Raises:
        UserError: `same_caption` has another value.
    """

    min_batch_size = 2

    def __init__(self, *, gather_with_grad: bool, max_logit_scale: float, same_caption: str) -> None:
        super().__init__()
        self.gather_with_grad = gather_with_grad
        self.max_logit_scale = max_logit_scale
        self.same_caption = checked_same_caption(same_caption)

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        features = {
            "image": self.encode_image(model, batch),
            "text": model.encode_text(batch["text"], batch["text_length"]),
        }
        if self.same_caption != "negative":
            features["caption"] = caption_keys(batch["text"], batch["text_length"])
        return features

    def encode_image(self, model: DualEncoder, batch: dict[str, Tensor], /) -> Float[Tensor, "batch embed"]:
        """Return the features of the batch's images in the space that they share with texts."""
        return model.encode_image(batch["image"])

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, text = (Features(features[name], gather_with_grad=self.gather_with_grad) for name in ("image", "text"))
        equal = EqualPairs(features["caption"], role=self.same_caption) if "caption" in features else None
        loss, accuracy = info_nce(image, text, model.logit_scale.exp(), equal)
        return {"loss": loss, "clip_loss": loss, "clip_acc": accuracy}

    def after_step(self, model: DualEncoder, /) -> None:
        clamp_logit_scale(model, self.max_logit_scale)


def info_nce(
    image: Features, text: Features, scale: Float[Tensor, ""], equal: EqualPairs | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the symmetric InfoNCE loss of this rank's rows, and the image-to-text accuracy in per cent.

    Every row is compared with the features of all ranks. The mean over ranks is the loss of the global batch.

    Args:
        image: this rank's image features; they are gathered over ranks when needed.
        text: this rank's text features; they are gathered over ranks when needed.
        scale: factor by which cosines are multiplied, exp(logit_scale).
        equal: which samples are equal, and the role of a pair of them; None: every other sample is a negative.
    """
    if equal is not None:
        return equal_info_nce(image, text, scale, equal)
    if is_large(len(image.local)):
        return tiled_info_nce(image, text, scale)
    logits_per_image = scale * image.local @ text.all.T  # [local, global]
    logits_per_text = scale * text.local @ image.all.T
    loss = (F.cross_entropy(logits_per_image, image.places) + F.cross_entropy(logits_per_text, text.places)) / 2
    accuracy = 100 * (logits_per_image.detach().argmax(dim=-1) == image.places).to(loss.dtype).mean()
    return loss, accuracy


@torch.no_grad()
def clamp_logit_scale(model: DualEncoder, maximum: float) -> None:
    """Clamp `logit_scale` to [0, maximum]; called after the optimizer step, as in the published code."""
    model.logit_scale.clamp_(0, maximum)
