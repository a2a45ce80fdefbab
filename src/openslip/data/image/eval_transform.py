"""The deterministic transform of evaluation, from image to tensor."""

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from openslip.data.image.decode import open_image
from openslip.data.image.rgb import ToRgb
from openslip.errors import UserError

LONGEST = 100  # longest side that is resized, in multiples of the shorter side
LARGEST = 10_000  # pixels of a side after the resize: a file can ask for any number, which would fill the memory
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
RESIZES = ("shortest", "squash", "longest")
CROPS = {"round": round, "floor": math.floor}


class EvalTransform:
    """Resize (antialiased), crop the centre, and normalise.

    Equal to torchvision's Resize, CenterCrop, ToTensor and Normalize on PIL images, and to open_clip's
    `image_transform` of the same resize mode.

    Args:
        size: side of the square that the model takes, in pixels.
        mean: mean of the normalisation, per channel.
        std: standard deviation of the normalisation, per channel.
        transparency: `white` (or None) composites transparent images on white; `ignore` drops the transparency, as the
            published loaders do.
        exif: `apply` turns images upright; `ignore` (or None) does not, as the published loaders.
        interpolation: `bilinear` or `bicubic`.
        resize: `shortest` resizes the shorter side and crops the centre; `squash` resizes to a square and changes the
            aspect ratio; `longest` resizes the longer side to `size` and pads the shorter one with black.
        resize_to: length of the shorter side before the crop, with `resize="shortest"`; None for `size`.
        crop: how half a pixel in the position of the crop is rounded: `round` (to even) as torchvision does, or `floor`
            as transformers does.

    Raises:
        UserError: a setting has an unknown value, a size is not from 1 to 10,000, or `resize_to` is below `size` or has
            no effect.
    """

    def __init__(
        self,
        *,
        size: int,
        mean: list[float],
        std: list[float],
        transparency: str | None = None,
        exif: str | None = None,
        interpolation: str = "bilinear",
        resize: str = "shortest",
        resize_to: int | None = None,
        crop: str = "round",
    ) -> None:
        if interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation={interpolation}: expected {' or '.join(INTERPOLATIONS)}")
        if resize not in RESIZES:
            raise UserError(f"resize={resize}: expected {', '.join(RESIZES)}")
        if crop not in CROPS:
            raise UserError(f"crop={crop}: expected {' or '.join(CROPS)}")
        for name, side in (("size", size), ("resize_to", size if resize_to is None else resize_to)):
            if not 1 <= side <= LARGEST:
                raise UserError(f"{name}={side}: expected from 1 to {LARGEST:,} pixels")
        if resize_to is not None and (resize_to < size or resize != "shortest"):
            raise UserError(f"resize_to={resize_to}: expected at least size={size}, and resize=shortest")
        self.size = size
        self.interpolation = interpolation
        self.resize = resize
        self.resize_to = resize_to
        self.crop = crop
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
        pixels = torch.from_numpy(np.array(self._square(image))).permute(2, 0, 1)
        return pixels.float().div_(255).sub_(self._mean).div_(self._std).contiguous()

    def _square(self, image: Image.Image) -> Image.Image:
        filter = INTERPOLATIONS[self.interpolation]  # noqa: A001
        if self.resize == "squash":
            return image.resize((self.size, self.size), filter)
        if self.resize == "longest":
            long = max(image.size)
            width, height = (max(1, round(side / (long / self.size))) for side in image.size)
            square = Image.new("RGB", (self.size, self.size))
            corner = (self.size - width) // 2, (self.size - height) // 2
            square.paste(image.resize((width, height), filter), corner)
            return square
        image = middle(image)
        width, height = image.size
        short, resized = min(width, height), self.resize_to or self.size
        width, height = int(resized * width / short), int(resized * height / short)
        left, top = (CROPS[self.crop]((side - self.size) / 2) for side in (width, height))
        image = image.resize((width, height), filter)
        return image.crop((left, top, left + self.size, top + self.size))

    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor that are not its defaults, from which a checkpoint rebuilds the transform."""
        names = ("interpolation", "resize", "resize_to", "crop")
        values = {"size": self.size, "mean": list(self.mean), "std": list(self.std), **self.to_rgb.settings()}
        values |= {name: getattr(self, name) for name in names}
        parameters = inspect.signature(EvalTransform).parameters
        return {name: value for name, value in values.items() if value != parameters[name].default}

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
