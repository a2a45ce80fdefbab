"""SimCLR: two augmented views of an image find each other. Chen et al. 2020, arXiv:2002.05709, algorithm 1."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.distributed import gather, rank
from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.objectives.clip import unit_length
from openslip.objectives.heads import projection_head
from openslip.objectives.objective import Objective
from openslip.objectives.tiled import is_large, tiled_nt_xent


class SimCLR(Objective):
    """Consumes `aug1`, `aug2`.

    Args:
        head_hidden: width of the head's two hidden layers; it reads the image tower's unprojected feature.
        head_output: size of `z1`, `z2`.
        ssl_temperature: divides the cosines.
    """

    def __init__(self, *, head_hidden: int, head_output: int, ssl_temperature: float) -> None:
        super().__init__()
        self.head_hidden = head_hidden
        self.head_output = head_output
        self.ssl_temperature = ssl_temperature

    def setup(self, model: ImageEncoder | DualEncoder, /) -> None:
        self.head = projection_head(model.image_tower.width, self.head_hidden, self.head_output)

    def encode(self, model: ImageEncoder | DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        aug1, aug2 = model.image_tower.views(batch["aug1"], batch["aug2"])
        return {"aug1": aug1, "aug2": aug2}

    def loss(self, model: ImageEncoder | DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        z1, z2 = self.head(features["aug1"]), self.head(features["aug2"])  # each view its own batch statistics
        loss, accuracy = nt_xent(z1, z2, self.ssl_temperature)
        return {"loss": loss, "ssl_loss": loss, "ssl_acc": accuracy}


def nt_xent(
    z1: Float[Tensor, "local dim"], z2: Float[Tensor, "local dim"], temperature: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of each view finding its partner among all 2B - 1 others of the global batch, and its accuracy.

    The mean of the two directions, as published SLIP; gradients flow into the keys of all ranks.
    """
    with torch.autocast(z1.device.type, enabled=False):
        z1, z2 = unit_length(z1), unit_length(z2)
        if is_large(2 * len(z1)):
            return tiled_nt_xent(z1, z2, temperature)
        keys1, keys2 = gather(z1, with_grad=True), gather(z2, with_grad=True)
        labels = rank() * len(z1) + torch.arange(len(z1), device=z1.device)
        loss1, accuracy = _one_view(z1, keys1, keys2, labels, temperature)
        loss2, _ = _one_view(z2, keys2, keys1, labels, temperature)
    return (loss1 + loss2) / 2, accuracy


def _one_view(
    queries: Tensor, same: Tensor, other: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    to_same = queries @ same.T / temperature  # [local, world]
    to_same = to_same.scatter(1, labels[:, None], float("-inf"))  # a view is no negative of itself
    to_other = queries @ other.T / temperature
    logits = torch.cat([to_other, to_same], dim=1)
    accuracy = 100 * (logits.detach().argmax(dim=-1) == labels).to(logits.dtype).mean()
    return F.cross_entropy(logits, labels), accuracy
