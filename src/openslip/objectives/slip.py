"""SLIP: CLIP plus SimCLR on two more views, with one image tower. Mu et al. 2021, arXiv:2112.12750, algorithm 1."""

from torch import Tensor

from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import clamp_logit_scale, info_nce
from openslip.objectives.heads import projection_head
from openslip.objectives.objective import Objective
from openslip.objectives.simclr import nt_xent
from openslip.objectives.similarity import Features


class SLIP(Objective):
    """The SLIP objective; it reads the batch keys `image`, `text`, `text_length`, `aug1` and `aug2`.

    Args:
        head_hidden: width of the SSL head's two hidden layers; the head's input is the image tower's
            pooled feature (SimCLR's h), not the output of CLIP's linear `image_projection`.
        head_output: width of the SSL head's output; the SimCLR term compares the outputs `z1` and `z2` of two views.
        ssl_scale: weight of the SimCLR term.
        ssl_temperature: temperature by which the cosines of the SimCLR term are divided.
        gather_with_grad: whether gradients of the CLIP term reach the keys of all ranks, as in `CLIP`. The SimCLR term
            always gathers with gradient, as published.
        max_logit_scale: largest value of `logit_scale`, as in `CLIP`.
    """

    min_batch_size = 2

    def __init__(
        self,
        *,
        head_hidden: int,
        head_output: int,
        ssl_scale: float,
        ssl_temperature: float,
        gather_with_grad: bool,
        max_logit_scale: float,
    ) -> None:
        super().__init__()
        self.head_hidden = head_hidden
        self.head_output = head_output
        self.ssl_scale = ssl_scale
        self.ssl_temperature = ssl_temperature
        self.gather_with_grad = gather_with_grad
        self.max_logit_scale = max_logit_scale

    def setup(self, model: DualEncoder, /) -> None:
        self.head = projection_head(model.image_tower.width, self.head_hidden, self.head_output)

    def encode(self, model: DualEncoder, batch: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, aug1, aug2 = model.image_tower.views(batch["image"], batch["aug1"], batch["aug2"])
        return {
            "image": model.project_image(image),
            "text": model.encode_text(batch["text"], batch["text_length"]),
            "aug1": aug1,
            "aug2": aug2,
        }

    def loss(self, model: DualEncoder, features: dict[str, Tensor], /) -> dict[str, Tensor]:
        image, text = (Features(features[name], gather_with_grad=self.gather_with_grad) for name in ("image", "text"))
        clip, clip_acc = info_nce(image, text, model.logit_scale.exp())
        # `views` computes the batch statistics of each view separately.
        z1, z2 = (Features(z, gather_with_grad=True) for z in self.head.views(features["aug1"], features["aug2"]))
        ssl, ssl_acc = nt_xent(z1, z2, self.ssl_temperature)
        return {
            "loss": clip + self.ssl_scale * ssl,
            "clip_loss": clip,
            "clip_acc": clip_acc,
            "ssl_loss": ssl,
            "ssl_acc": ssl_acc,
        }

    def after_step(self, model: DualEncoder, /) -> None:
        clamp_logit_scale(model, self.max_logit_scale)
