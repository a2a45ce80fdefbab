"""DrLIM: the contrastive loss with a margin. Hadsell, Chopra and LeCun 2006, CVPR, equations 1 to 4."""

import torch
from jaxtyping import Float
from torch import Tensor

from openslip.distributed import world_size
from openslip.models.projected_image_encoder import ProjectedImageEncoder
from openslip.objectives.image_pairs import Views, kinds, views_of_all_ranks
from openslip.objectives.objective import Objective
from openslip.objectives.tiles import sum_over_pairs


class Hadsell(Objective):
    """The objective of DrLIM; it reads the batch keys `aug1`, `aug2` and `label`.

    Similar pairs are two views of one image or of images with the same label; an image without a label (-1) has a class
    of its own. All pairs of different views of the global batch count alike: docs/NUMERICS.md#image-pairs.

    Args:
        margin: distance m at which dissimilar points stop repelling each other.
    """

    min_batch_size = 2

    def __init__(self, *, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def encode(self, model: ProjectedImageEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        aug1, aug2 = model.image_tower.views(batch["aug1"], batch["aug2"])
        return {"aug1": model.project_image(aug1), "aug2": model.project_image(aug2), "label": batch["label"]}

    def loss(self, model: ProjectedImageEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        rows, columns = views_of_all_ranks(features)

        def pair_loss(*tile: Tensor) -> Float[Tensor, ""]:
            one, other = Views(*tile[:3]), Views(*tile[3:])
            # Not by a matrix product, whose rounding errors are large where points are close.
            distance = torch.cdist(one.encoding, other.encoding, compute_mode="donot_use_mm_for_euclid_dist")
            same, different = kinds(one, other)
            return (same * distance.square() + different * (self.margin - distance).clamp(min=0).square()).sum() / 2

        num_pairs = len(columns.label) * (len(columns.label) - 1)
        loss = sum_over_pairs(pair_loss, rows, columns) * world_size() / num_pairs
        return {"loss": loss}
