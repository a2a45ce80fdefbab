"""UniCL: samples with the same label or caption are positives of each other. Yang et al. 2022, arXiv:2204.03610."""

from torch import Tensor

from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import clamp_logit_scale
from openslip.objectives.equal_info_nce import equal_info_nce
from openslip.objectives.equal_pairs import EqualPairs, caption_keys
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features


class UniCL(Objective):
    """The UniCL objective; it reads the batch keys `image`, `text`, `text_length` and `label`.

    The labels of a mixture must come from one dataset, or from datasets that number their classes alike. Without labels
    the loss equals CLIP's, because equal captions have equal text features (without dropout in the text tower):
    docs/NUMERICS.md#same_caption.

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
            "image": model.encode_image(batch["image"]),
            "text": model.encode_text(batch["text"], batch["text_length"]),
            "caption": caption_keys(batch["text"], batch["text_length"]),
            "label": batch["label"],
        }

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, text = (Features(features[name], gather_with_grad=self.gather_with_grad) for name in ("image", "text"))
        equal = EqualPairs(features["caption"], features["label"], role="positive")
        loss, accuracy = equal_info_nce(image, text, model.logit_scale.exp(), equal)
        return {"loss": loss, "unicl_loss": loss, "unicl_acc": accuracy}

    def after_step(self, model: DualEncoder, /) -> None:
        clamp_logit_scale(model, self.max_logit_scale)
