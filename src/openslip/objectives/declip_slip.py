"""SLIP as in DeCLIP's repository: SLIP's loss, with DeCLIP's limits of the temperature. arXiv:2203.05796, section 3."""

from collections.abc import Sequence

from torch import Tensor

from openslip.models.dual_encoder import DualEncoder
from openslip.objectives.clip import info_nce
from openslip.objectives.heads import projection_head
from openslip.objectives.logit_scale import LogitScaleLimits
from openslip.objectives.objective import Objective
from openslip.objectives.simclr import nt_xent
from openslip.objectives.similarity import Features


class DeclipSLIP(Objective):
    """The SLIP objective of DeCLIP's repository; it reads `image`, `text`, `text_length`, `aug1` and `aug2`.

    It gathers all features with gradient, as published. Its batch norm uses the statistics of the global batch; it is
    assumed that the published code does so too: docs/NUMERICS.md#declip.

    Args:
        head_hidden: width of the SSL head's two hidden layers; the head's input is the image tower's pooled feature.
        head_output: width of the SSL head's output.
        clip_scale: weight of the CLIP term.
        ssl_scale: weight of the SimCLR term.
        ssl_temperature: temperature by which the cosines of the SimCLR term are divided.
        logit_scale_bounds: smallest and largest `logit_scale`.
        largest_factor: largest factor on the cosines; if None, only the bounds limit it, as published.
        published_limits: as `published` in `LogitScaleLimits`.
        text_epsilon: number added to the norm of a caption's feature before the feature is divided by it:
            docs/NUMERICS.md#declip.
    """

    min_batch_size = 2

    def __init__(
        self,
        *,
        head_hidden: int,
        head_output: int,
        clip_scale: float,
        ssl_scale: float,
        ssl_temperature: float,
        logit_scale_bounds: Sequence[float],
        largest_factor: float | None,
        published_limits: bool,
        text_epsilon: float,
    ) -> None:
        super().__init__()
        self.head_hidden = head_hidden
        self.head_output = head_output
        self.clip_scale = clip_scale
        self.ssl_scale = ssl_scale
        self.ssl_temperature = ssl_temperature
        self.limits = LogitScaleLimits(logit_scale_bounds, largest_factor, published=published_limits)
        self.text_epsilon = text_epsilon

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
        image = Features(features["image"], gather_with_grad=True)
        text = Features(features["text"], gather_with_grad=True, epsilon=self.text_epsilon)
        clip, clip_acc = info_nce(image, text, self.limits.factor(model))
        z1, z2 = (Features(z, gather_with_grad=True) for z in self.head.views(features["aug1"], features["aug2"]))
        ssl, ssl_acc = nt_xent(z1, z2, self.ssl_temperature)
        return {
            "loss": self.clip_scale * clip + self.ssl_scale * ssl,
            "clip_loss": clip,
            "clip_acc": clip_acc,
            "ssl_loss": ssl,
            "ssl_acc": ssl_acc,
        }

    def after_step(self, model: DualEncoder, /) -> None:
        self.limits.after_step(model)
