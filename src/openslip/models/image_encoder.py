"""An image tower alone, for objectives without captions (SimCLR)."""

from jaxtyping import Float
from torch import Tensor, nn

from openslip.models.tower import Tower


class ImageEncoder(nn.Module):
    """Images as vectors; the tower's own width, no projection."""

    def __init__(self, *, image_tower: Tower) -> None:
        super().__init__()
        self.image_tower = image_tower

    def encode_image(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Images to tower features, not normalised."""
        return self.image_tower(image)
