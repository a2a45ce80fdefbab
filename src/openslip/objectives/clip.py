"""CLIP: symmetric InfoNCE with a learnable temperature. Radford et al. 2021, arXiv:2103.00020, figure 3."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.distributed import gather, rank
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.objective import Objective
from openslip.objectives.tiled import is_large, tiled_info_nce


class CLIP(Objective):
    """Consumes `image`, `text`, `text_length`.

    Args:
        gather_with_grad: gradients flow into the keys of all ranks (the exact loss of the global batch); false detaches
            the keys at any number of ranks, one included, as the published 64-GPU runs did: docs/NUMERICS.md#gather.
        max_logit_scale: upper clamp of `logit_scale` after each step; the lower one is 0.
    """

    def __init__(self, *, gather_with_grad: bool, max_logit_scale: float) -> None:
        super().__init__()
        self.gather_with_grad = gather_with_grad
        self.max_logit_scale = max_logit_scale

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {
            "image": model.encode_image(batch["image"]),
            "text": model.encode_text(batch["text"], batch["text_length"]),
        }

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        loss, accuracy = clip_loss(
            features["image"], features["text"], model.logit_scale.exp(), gather_with_grad=self.gather_with_grad
        )
        return {"loss": loss, "clip_loss": loss, "clip_acc": accuracy}

    def after_step(self, model: DualEncoder, /) -> None:
        clamp_logit_scale(model, self.max_logit_scale)


def clip_loss(
    image_features: Float[Tensor, "local embed"],
    text_features: Float[Tensor, "local embed"],
    scale: Float[Tensor, ""],
    *,
    gather_with_grad: bool,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean cross-entropy of image-to-text and text-to-image over the global batch, and the accuracy in per cent.

    Features need not be normalised. `scale` is exp(logit_scale). For this rank's rows; the mean over ranks is the loss.
    """
    with torch.autocast(image_features.device.type, enabled=False):  # bf16 logits at scale 55 are off by 1e-2
        image, text = unit_length(image_features), unit_length(text_features)
        if is_large(len(image)):
            return tiled_info_nce(image, text, scale, gather_with_grad=gather_with_grad)
        logits_per_image = scale * image @ gather(text, with_grad=gather_with_grad).T  # [local, world]
        logits_per_text = scale * text @ gather(image, with_grad=gather_with_grad).T
        labels = rank() * len(image) + torch.arange(len(image), device=image.device)
        loss = (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_text, labels)) / 2
        accuracy = 100 * (logits_per_image.detach().argmax(dim=-1) == labels).to(loss.dtype).mean()
    return loss, accuracy


def unit_length(x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
    """Rows of length 1, in float32 at least."""
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


@torch.no_grad()
def clamp_logit_scale(model: DualEncoder, maximum: float) -> None:
    """Keep `logit_scale` in [0, maximum], after the step as published."""
    model.logit_scale.clamp_(0, maximum)
