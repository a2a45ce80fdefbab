"""LiT: contrastive tuning of a text tower to a locked image tower. Zhai et al. 2021, arXiv:2111.07991."""

from jaxtyping import Float
from torch import Tensor

from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import CLIP


class LiT(CLIP):
    """CLIP's loss on features of a locked image tower; it reads `image_features`, `text` and `text_length`.

    A locked tower gives the same feature of an image in every epoch, so the callback `LockedImages` computes it once,
    and the view `LockedImage` returns it. The projections, the text tower and `logit_scale` are trained. The arguments
    are those of `CLIP`.
    """

    def encode_image(self, model: DualEncoder, batch: dict[str, Tensor], /) -> Float[Tensor, "batch embed"]:
        return model.project_image(batch["image_features"])
