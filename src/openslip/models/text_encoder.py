"""A model with a text tower only, such as a file of word vectors."""

from typing import NoReturn

from jaxtyping import Float, Int
from torch import Tensor, nn

from openslip.errors import UserError
from openslip.models.tower import Tower


class TextEncoder(nn.Module):
    """Encodes texts with a tower and without a projection, so features have the tower's width."""

    def __init__(self, *, text_tower: Tower) -> None:
        super().__init__()
        self.text_tower = text_tower

    def encode_text(
        self, text: Int[Tensor, "batch length"], text_length: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch features"]:
        """Return the tower's features of texts, without normalisation."""
        return self.text_tower(text, text_length)

    def encode_image(self, image: Float[Tensor, "batch 3 height width"]) -> NoReturn:
        """Refuse images, because there is no image tower."""
        raise UserError("images need an image tower, and TextEncoder has none: take a CLIP or SLIP model")
