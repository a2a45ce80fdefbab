"""A model with an image tower and a linear map into a space of any dimension.

The space is, for example, the plane onto which DrLIM maps images, or the joint space of a model of which only the
image side was exported.
"""

from jaxtyping import Float
from torch import Tensor, nn

from openslip.models.tower import Tower


class ProjectedImageEncoder(nn.Module):
    """Maps images to points, which are not normalised.

    Args:
        image_tower: tower that encodes images.
        embed_dim: dimension of the points.
    """

    def __init__(self, *, image_tower: Tower, embed_dim: int) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.image_projection = nn.Linear(image_tower.width, embed_dim)

    def project_image(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch embed"]:
        """Map features of the image tower to points."""
        return self.image_projection(features)

    def encode_image(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Return the point of each image."""
        return self.project_image(self.image_tower(image))
