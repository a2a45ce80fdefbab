"""The deterministic transform of evaluation, from image to tensor."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from openslip.data.image.decode import open_image
from openslip.data.image.rgb import ToRgb

LONGEST = 100  # longest side that is resized, in multiples of the shorter side


class EvalTransform:
    """Resize the short side to `size` (bilinear, antialiased), crop the centre, and normalise.

    Equal to torchvision's Resize, CenterCrop, ToTensor and Normalize.

    Args:
        size: side of the square that the model takes, in pixels.
        mean: mean of the normalisation, per channel.
        std: standard deviation of the normalisation, per channel.
        transparency: `white` (or None) composites transparent images on white; `ignore` drops the transparency, as the
            published loaders do.
        exif: `apply` turns images upright; `ignore` (or None) does not, as the published loaders.
    """

    def __init__(
        self,
        *,
        size: int,
        mean: list[float],
        std: list[float],
        transparency: str | None = None,
        exif: str | None = None,
    ) -> None:
        self.size = size
        self.mean = mean
        self.std = std
        self.to_rgb = ToRgb(transparency, exif)
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)

    def read(self, source: bytes | str | Path, name: str) -> Float[Tensor, "3 size size"]:
        """Read an encoded image from bytes or a path; `name` is what an error calls it. Raises as `open_image` does."""
        return self._resized(open_image(source, name, self.to_rgb))

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        """Transform a PIL image of any mode."""
        image.load()
        return self._resized(self.to_rgb(image))

    def _resized(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        image = middle(image)
        width, height = image.size
        short = min(width, height)
        width, height = int(self.size * width / short), int(self.size * height / short)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float().div_(255).sub_(self._mean).div_(self._std).contiguous()

    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor as plain values, from which a checkpoint rebuilds the transform."""
        return {"size": self.size, "mean": list(self.mean), "std": list(self.std), **self.to_rgb.settings()}

    def undo(self, images: Float[Tensor, "images 3 height width"]) -> UInt8[np.ndarray, "images 3 height width"]:
        """Convert normalised images back to pixels, for reports."""
        return (images * self._std + self._mean).mul(255).round().clamp(0, 255).to(torch.uint8).numpy()


def middle(image: Image.Image) -> Image.Image:
    """Cut off the ends of a very long image: no centre crop reaches them, and resizing them could fill the memory."""
    most = LONGEST * min(image.size)
    cuts = [max(0, side - most) // 2 for side in image.size]  # the same at both ends, which keeps the centre
    if not any(cuts):
        return image
    return image.crop((cuts[0], cuts[1], image.width - cuts[0], image.height - cuts[1]))
