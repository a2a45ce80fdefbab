"""NegCLIP: images are also compared with captions with two words exchanged. Yuksekgonul et al. 2022, arXiv:2210.01936.

The paper (section 4) also adds similar images to the batch, which must be found beforehand; this objective adds none. A
hard caption has no image of its own, so it is never a row, only a column.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from openslip.distributed import gather, mean_over_ranks
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import clamp_logit_scale
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features
from openslip.objectives.stacked import stacked
from openslip.objectives.tiles import sum_over_rows


class NegCLIP(Objective):
    """The NegCLIP objective; it reads the batch key `image` and the keys of the view `text`, a `HardCaption`.

    Args:
        gather_with_grad: whether gradients reach the keys of all ranks, as in `CLIP`.
        max_logit_scale: largest value of `logit_scale`, as in `CLIP`.
    """

    min_batch_size = 2

    def __init__(self, *, gather_with_grad: bool, max_logit_scale: float) -> None:
        super().__init__()
        self.gather_with_grad = gather_with_grad
        self.max_logit_scale = max_logit_scale

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        captions = stacked(batch["text"], batch["text_length"], batch["text_hard"], batch["text_hard_length"])
        text, hard = model.encode_text(*captions).chunk(2)
        image = model.encode_image(batch["image"])
        return {"image": image, "text": text, "hard": hard, "has_hard": batch["text_has_hard"]}

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, text, hard = (
            Features(features[name], gather_with_grad=self.gather_with_grad) for name in ("image", "text", "hard")
        )
        has_hard = features["has_hard"]
        loss, accuracy = hard_info_nce(image, text, hard, has_hard, model.logit_scale.exp())
        with torch.no_grad():
            own, other = ((image.local * caption.local).sum(dim=1) for caption in (text, hard))
            is_right = 100 * ((own > other) & has_hard).to(own.dtype)
        return {
            "loss": loss,
            "clip_loss": loss,
            "clip_acc": accuracy,
            "hard_acc": mean_over_ranks(is_right.sum(), has_hard.sum()),
        }

    def after_step(self, model: DualEncoder, /) -> None:
        clamp_logit_scale(model, self.max_logit_scale)


def hard_info_nce(
    image: Features, text: Features, hard: Features, has_hard: Bool[Tensor, " local"], scale: Float[Tensor, ""]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the symmetric InfoNCE loss with hard captions as further columns, and the image-to-text accuracy.

    Each image is compared with the captions and the hard captions of all ranks, each caption with all images. The mean
    over ranks is the loss of the global batch. The accuracy is in per cent.

    Args:
        image: this rank's image features.
        text: this rank's caption features.
        hard: features of the hard captions, one for each caption.
        has_hard: whether a caption has a hard caption; if not, its row of `hard` is not compared.
        scale: factor by which cosines are multiplied.
    """
    captions = torch.cat([text.all, hard.all])
    exists = gather(has_hard.to(torch.uint8), with_grad=False).bool()
    exists = torch.cat([torch.ones_like(exists), exists])

    def of_images(rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        logits = (scale * rows @ captions.T).masked_fill(~exists, float("-inf"))
        right = (logits.detach().argmax(dim=-1) == places).to(logits.dtype)
        return F.cross_entropy(logits, places, reduction="sum"), 100 * right.sum()

    def of_texts(rows: Tensor, places: Tensor) -> tuple[Tensor]:
        return (F.cross_entropy(scale * rows @ image.all.T, places, reduction="sum"),)

    image_loss, accuracy = sum_over_rows(of_images, (image.local, image.places))
    (text_loss,) = sum_over_rows(of_texts, (text.local, text.places))
    return (image_loss + text_loss) / (2 * len(image.local)), accuracy / len(image.local)
