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

    Args:
        use_labels: whether samples with the same label are positives, in addition to those with the same caption. The
            datasets of a mixture must then number their labels alike.
        gather_with_grad: whether gradients also flow into the keys, as in `CLIP`.
        max_logit_scale: largest value of `logit_scale`, as in `CLIP`.
    """

    min_batch_size = 2

    def __init__(self, *, use_labels: bool, gather_with_grad: bool, max_logit_scale: float) -> None:
        super().__init__()
        self.use_labels = use_labels
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
        labels = features["label"] if self.use_labels else None
        equal = EqualPairs(features["caption"], labels, role="positive")
        loss, accuracy = equal_info_nce(image, text, model.logit_scale.exp(), equal)
        return {"loss": loss, "unicl_loss": loss, "unicl_acc": accuracy}

    def after_step(self, model: DualEncoder, /) -> None:
        clamp_logit_scale(model, self.max_logit_scale)
