"""A siamese network: one encoder for both images of a pair, and a learned weighted L1 distance between them.

Koch, Zemel and Salakhutdinov 2015, "Siamese neural networks for one-shot image recognition", section 3.1.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openslip.models.tower import Tower


class Siamese(nn.Module):
    """Encodes images, and answers for any two of them whether they show the same class.

    Args:
        image_tower: tower that encodes images.
        embed_dim: dimension of the encoding, the output of a linear layer and a sigmoid.
    """

    def __init__(self, *, image_tower: Tower, embed_dim: int) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.image_projection = nn.Linear(image_tower.width, embed_dim)
        # All weights start equal and negative: a larger difference makes the same class less likely.
        self.l1_weight = nn.Parameter(torch.full((embed_dim,), -(embed_dim**-0.5)))
        self.l1_bias = nn.Parameter(torch.zeros(()))

    def project_image(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch embed"]:
        """Turn features of the image tower into encodings."""
        return self.image_projection(features).sigmoid()

    def encode_image(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Return the encoding of each image."""
        return self.project_image(self.image_tower(image))

    def same_logits(
        self, first: Float[Tensor, "rows embed"], second: Float[Tensor, "columns embed"]
    ) -> Float[Tensor, "rows columns"]:
        """Return for each row and column the logit that both are of the same class: sum_j a_j |h1_j - h2_j| + b.

        The bias b is ours: docs/NUMERICS.md#siamese.
        """
        # |a_j| scales a dimension, and the sign of a_j decides which of the two distances the dimension belongs to. So
        # no tensor of [rows, columns, embed] is needed.
        for_same, against = self.l1_weight.clamp(min=0), (-self.l1_weight).clamp(min=0)
        likeness = torch.cdist(first * for_same, second * for_same, p=1)
        return likeness - torch.cdist(first * against, second * against, p=1) + self.l1_bias

    def same_logits_of_pairs(
        self, first: Float[Tensor, "pairs embed"], second: Float[Tensor, "pairs embed"]
    ) -> Float[Tensor, " pairs"]:
        """Return one logit per pair of images: that of the probability that both are of the same class.

        Row i of `first` and row i of `second` are the encodings of pair i.
        """
        return (first - second).abs() @ self.l1_weight.to(first.dtype) + self.l1_bias
