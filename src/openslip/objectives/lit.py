"""LiT: contrastive tuning of a text tower to a locked image tower. Zhai et al. 2021, arXiv:2111.07991."""

from torch import Tensor

from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import clamp_logit_scale, info_nce
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features


class LiT(Objective):
    """CLIP's loss on features of a locked image tower; it reads `image_features`, `text` and `text_length`.

    A locked tower gives the same feature of an image in every epoch, so the view `LockedImage` computes it once. The
    projections, the text tower and `logit_scale` are trained.

    Args:
        gather_with_grad: whether gradients also flow into the keys, as in `CLIP`.
        max_logit_scale: largest value of `logit_scale`, as in `CLIP`.
    """

    min_batch_size = 2

    def __init__(self, *, gather_with_grad: bool, max_logit_scale: float) -> None:
        super().__init__()
        self.gather_with_grad = gather_with_grad
        self.max_logit_scale = max_logit_scale

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {
            "image": model.project_image(batch["image_features"]),
            "text": model.encode_text(batch["text"], batch["text_length"]),
        }

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, text = (Features(features[name], gather_with_grad=self.gather_with_grad) for name in ("image", "text"))
        loss, accuracy = info_nce(image, text, model.logit_scale.exp())
        return {"loss": loss, "clip_loss": loss, "clip_acc": accuracy}

    def after_step(self, model: DualEncoder, /) -> None:
        clamp_logit_scale(model, self.max_logit_scale)
