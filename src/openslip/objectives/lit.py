"""LiT: contrastive tuning of a text tower to a locked image tower. Zhai et al. 2021, arXiv:2111.07991."""

from jaxtyping import Float
from torch import Tensor

from openslip.errors import UserError
from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import CLIP
from openslip.objectives.contained_words import ContainedWords
from openslip.objectives.equal_info_nce import equal_info_nce
from openslip.objectives.similarity import Features

CONTAINED_CAPTION = ("negative", "positive")


class LiT(CLIP):
    """CLIP's loss on features of a locked image tower; it reads `image_features`, `text` and `text_length`.

    A locked tower gives the same feature of an image in every epoch, so the callback `LockedImages` computes it once,
    and the view `LockedImage` returns it. The projections, the text tower and `logit_scale` are trained.

    Args:
        contained_caption: role of an image and another sample's caption whose words are all among the words of the
            image's captions: `negative`, or `positive`, for which `text` must be the view `DrawnWords`. All other
            arguments are as in `CLIP`.

    Raises:
        UserError: `contained_caption` has another value; or it is `positive`, which makes equal captions positives, and
            `same_caption` is not at its value `negative`.
    """

    def __init__(
        self, *, gather_with_grad: bool, max_logit_scale: float, same_caption: str, contained_caption: str
    ) -> None:
        super().__init__(gather_with_grad=gather_with_grad, max_logit_scale=max_logit_scale, same_caption=same_caption)
        if contained_caption not in CONTAINED_CAPTION:
            raise UserError(f"contained_caption={contained_caption}: expected negative or positive")
        if contained_caption == "positive" and same_caption != "negative":
            raise UserError(
                f"same_caption={same_caption}: with contained_caption=positive, equal captions are positives; expected "
                "same_caption=negative"
            )
        self.contained_caption = contained_caption

    def encode_image(self, model: DualEncoder, batch: dict[str, Tensor], /) -> Float[Tensor, "batch embed"]:
        return model.project_image(batch["image_features"])

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        features = super().encode(model, batch)
        if self.contained_caption == "positive":
            features |= {"words": batch["text_words"], "drawn": batch["text_drawn"]}
        return features

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        if "words" not in features:
            return super().loss(model, features)
        image, text = (Features(features[name], gather_with_grad=self.gather_with_grad) for name in ("image", "text"))
        contained = ContainedWords(features["words"], features["drawn"])
        loss, accuracy = equal_info_nce(image, text, model.logit_scale.exp(), contained)
        return {"loss": loss, "clip_loss": loss, "clip_acc": accuracy}
