"""Zero-data learning: a scorer of images and descriptions of classes. Larochelle, Erhan and Bengio 2008, AAAI."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.distributed import gather
from openslip.errors import UserError
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import clamp_logit_scale
from openslip.objectives.image_pairs import classes_of
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features
from openslip.objectives.tiles import sum_over_pairs


class ZeroData(Objective):
    """Binary classification of pairs (x, d(z)); it reads the batch keys `image`, `text`, `text_length` and `label`.

    The scorer f(x, d(z)) tells whether image x shows the class z that a caption describes. Each image is compared with
    every caption of the global batch; the target is 1 if both have the same label, or, for an image without a label,
    if the caption is its own. A class is represented only by its description, so f also scores classes that have no
    training images. As in the paper's linear model, the score is bilinear in image and description; here, in their
    features of unit length: docs/NUMERICS.md#zero-data.

    Args:
        max_logit_scale: largest value of `logit_scale`, as in `CLIP`.
    """

    min_batch_size = 2

    def __init__(self, *, max_logit_scale: float) -> None:
        super().__init__()
        self.max_logit_scale = max_logit_scale

    def setup(self, model: DualEncoder, /) -> None:
        if model.logit_bias is None:
            raise UserError("model.logit_bias_init=null: zero-data learning needs a bias, such as -10")

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        return {
            "image": model.encode_image(batch["image"]),
            "text": model.encode_text(batch["text"], batch["text_length"]),
            "label": batch["label"],  # -1 without one
        }

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, text = (Features(features[name], gather_with_grad=True) for name in ("image", "text"))
        scale, bias = model.logit_scale.exp(), model.logit_bias
        assert bias is not None  # checked in `setup`

        def pair_loss(x: Tensor, label: Tensor, d: Tensor, described: Tensor) -> Float[Tensor, ""]:
            score = scale * x @ d.T + bias
            is_described = (label[:, None] == described).to(score.dtype)
            return F.binary_cross_entropy_with_logits(score, is_described, reduction="sum")

        classes = classes_of(features["label"], image.places)
        rows, columns = (image.local, classes), (text.all, gather(classes, with_grad=False))
        return {"loss": sum_over_pairs(pair_loss, rows, columns) / len(image.local)}

    def after_step(self, model: DualEncoder, /) -> None:
        clamp_logit_scale(model, self.max_logit_scale)
