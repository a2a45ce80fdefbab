"""A model with an image tower only, for objectives without captions (SimCLR)."""

from jaxtyping import Float
from torch import Tensor, nn

from openslip.models.tower import Tower


class ImageEncoder(nn.Module):
    """Encodes images with a tower and without a projection, so features have the tower's width."""

    def __init__(self, *, image_tower: Tower) -> None:
        super().__init__()
        self.image_tower = image_tower

    def encode_image(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return the tower's features of images, without normalisation."""
        return self.image_tower(image)
