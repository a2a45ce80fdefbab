"""Siamese networks: are two images of the same class? Koch, Zemel and Salakhutdinov 2015, section 3."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.distributed import world_size
from openslip.models.siamese import Siamese
from openslip.objectives.image_pairs import Views, kinds, num_pairs_of_one_class, views_of_all_ranks
from openslip.objectives.objective import Objective
from openslip.objectives.tiles import sum_over_pairs


class SiamesePairs(Objective):
    """Binary classification of pairs of images; it reads the batch keys `aug1`, `aug2` and `label`.

    The loss is the average of two means: the mean cross-entropy of the pairs of the same class, and that of all other
    pairs. This is the expected loss of the paper's sampling, which draws equally many pairs of both kinds:
    docs/NUMERICS.md#image-pairs. Pairs are all pairs of different views of the global batch; two views of one image are
    of the same class, and an image without a label (-1) has a class of its own. The distance belongs to the model.
    """

    min_batch_size = 2

    def encode(self, model: Siamese, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        aug1, aug2 = model.image_tower.views(batch["aug1"], batch["aug2"])
        return {"aug1": model.project_image(aug1), "aug2": model.project_image(aug2), "label": batch["label"]}

    def loss(self, model: Siamese, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        rows, columns = views_of_all_ranks(features)
        num_same = num_pairs_of_one_class(columns)
        num_different = len(columns.label) * (len(columns.label) - 1) - num_same
        of_same, of_different = (0.5 * world_size() / count.clamp(min=1) for count in (num_same, num_different))

        def pair_loss(*tile: Tensor) -> Float[Tensor, ""]:
            one, other = Views(*tile[:3]), Views(*tile[3:])
            logits = model.same_logits(one.encoding, other.encoding)
            same, different = kinds(one, other)
            return (of_same * same * F.softplus(-logits) + of_different * different * F.softplus(logits)).sum()

        return {"loss": sum_over_pairs(pair_loss, rows, columns)}
