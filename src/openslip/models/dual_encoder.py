"""Two towers, two projections into a joint space, one learnable temperature. Radford et al. 2021, arXiv:2103.00020."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from openslip.models.tower import Tower


class DualEncoder(nn.Module):
    """Images and captions as vectors of one space; features are normalised where they are compared, not here.

    Args:
        image_tower: any tower of images.
        text_tower: any tower of token ids.
        embed_dim: size of the joint space.
        logit_scale_init: initial log of the factor on the cosines (2.6593 = ln(1/0.07) in the paper).
    """

    def __init__(self, *, image_tower: Tower, text_tower: Tower, embed_dim: int, logit_scale_init: float) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.text_tower = text_tower
        self.image_projection = nn.Parameter(torch.empty(image_tower.width, embed_dim))
        self.text_projection = nn.Parameter(torch.empty(text_tower.width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale_init)))
        nn.init.normal_(self.image_projection, std=image_tower.width**-0.5)
        nn.init.normal_(self.text_projection, std=text_tower.width**-0.5)

    def project_image(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch embed"]:
        """Tower features into the joint space."""
        return features @ self.image_projection

    def encode_image(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Images into the joint space, not normalised."""
        return self.project_image(self.image_tower(image))

    def encode_text(
        self, text: Int[Tensor, "batch length"], text_length: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch embed"]:
        """Captions into the joint space, not normalised; `text_length` is the pooled position + 1."""
        return self.text_tower(text, text_length) @ self.text_projection
