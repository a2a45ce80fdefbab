"""SimCLR: contrastive loss on two augmented views of each image. Chen et al. 2020, arXiv:2002.05709, algorithm 1."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.objectives.heads import projection_head
from openslip.objectives.objective import Objective
from openslip.objectives.similarity import Features
from openslip.objectives.tiled import tiled_nt_xent
from openslip.objectives.tiles import is_large


class SimCLR(Objective):
    """The SimCLR objective; it reads the batch keys `aug1` and `aug2`.

    Args:
        head_hidden: width of the head's two hidden layers; the head's input is the image tower's pooled
            feature (SimCLR's h), not the output of CLIP's linear `image_projection`.
        head_output: width of the head's output; the loss compares the outputs `z1` and `z2` of the two views.
        ssl_temperature: temperature by which the cosines are divided.
    """

    min_batch_size = 2

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
        # `views` computes the batch statistics of each view separately.
        z1, z2 = (Features(z, gather_with_grad=True) for z in self.head.views(features["aug1"], features["aug2"]))
        loss, accuracy = nt_xent(z1, z2, self.ssl_temperature)
        return {"loss": loss, "ssl_loss": loss, "ssl_acc": accuracy}


def nt_xent(z1: Features, z2: Features, temperature: float) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return this rank's NT-Xent loss, and its accuracy in per cent: how often the positive is the most similar view.

    Each view is compared with the 2B - 1 other views of the global batch of B samples. The positive is the other view
    of the same image. The loss is the mean of the losses of `z1` and `z2`, as in published SLIP. The accuracy is
    computed for `z1` only. Gradients reach the features of all ranks.
    """
    if is_large(2 * len(z1.local)):
        return tiled_nt_xent(z1, z2, temperature)
    loss1, accuracy = one_view(z1, z2, temperature)
    loss2, _ = one_view(z2, z1, temperature)
    return (loss1 + loss2) / 2, accuracy


def one_view(view: Features, other: Features, temperature: float) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the cross-entropy of the rows of `view`, with positives in `other`, and the accuracy in per cent."""
    to_same = view.local @ view.all.T / temperature  # [local, global]
    to_same = to_same.scatter(1, view.places[:, None], float("-inf"))  # a view is not its own negative
    to_other = view.local @ other.all.T / temperature
    logits = torch.cat([to_other, to_same], dim=1)
    accuracy = 100 * (logits.detach().argmax(dim=-1) == view.places).to(logits.dtype).mean()
    return F.cross_entropy(logits, view.places), accuracy
