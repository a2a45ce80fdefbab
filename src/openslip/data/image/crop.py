"""Random crops for training, augmented and normalised on the training device."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from openslip.data.image.augment import SimCLRAugment, normalise
from openslip.data.image.decode import Box
from openslip.data.view import Columns, DecodedSample, View
from openslip.errors import UserError

SAMPLES_AT_A_TIME = 512  # on a GPU, where the augmentations take 2.5 MB per sample at 224 pixels


class RandomResizedCrop(View):
    """View NAME [B, 3, size, size]: one random crop per image, augmented and normalised on the training device.

    The crop is that of torchvision's RandomResizedCrop: bilinear with antialiasing, ratio 3/4 to 4/3.

    Args:
        size: side of the square crop, in pixels.
        scale: least and most share of the image's area, (0.08, 1) in SimCLR, (0.5, 1) for SLIP's image view.
        augment: augmentations, drawn in the worker and applied on the training device; None only crops.
        mean: mean of the normalisation, per channel.
        std: standard deviation of the normalisation, per channel.
    """

    on_cpu = ("parameters",)

    def __init__(
        self, *, size: int, scale: Sequence[float], augment: SimCLRAugment | None, mean: list[float], std: list[float]
    ) -> None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise UserError(f"scale={list(scale)}: expected [low, high] with 0 < low <= high, such as [0.08, 1]")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise UserError(f"{name}={values}: expected three numbers, one per colour channel")
        self.size = size
        self.scale = (float(scale[0]), float(scale[1]))
        self.augment = augment
        self.mean = mean
        self.std = std

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw the crop as uint8, and the parameters of its augmentation."""
        drawn = {"": sample.image.crop(random_box(*sample.image.size, self.scale, rng), self.size)}
        return drawn if self.augment is None else drawn | {"parameters": self.augment.draw(rng)}

    def finish(self, columns: Columns) -> Columns:
        """Augment and normalise the crops; the parameters are read on the CPU."""
        images, parameters = columns[""], columns.get("parameters")
        if images.is_cpu:
            # The CPU cache holds one image, so each image passes all operations before the next one. The memory comes
            # from numpy, which asks for huge pages: faults of small pages cost half as much as all the operations.
            length, finished = 1, torch.from_numpy(np.empty(images.shape, np.float32))
        else:
            length, finished = SAMPLES_AT_A_TIME, torch.empty(images.shape, device=images.device)
        for start in range(0, len(images), length):
            part = slice(start, start + length)
            x = images[part].float().div_(255)
            if self.augment is not None and parameters is not None:
                x = self.augment(x, parameters[part])
            normalise(x, self.mean, self.std, out=finished[part])
        return {"": finished}

    def compile(self) -> None:
        if self.augment is not None:
            self.augment.compile()

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        return {"": torch.randn(size, 3, self.size, self.size, generator=generator)}


_LOG_RATIO = math.log(4 / 3)
_TRIES = 10


def random_box(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """Draw a box from the distribution of torchvision's RandomResizedCrop.get_params.

    The number of draws is constant, so that later draws do not depend on the shape of the image.
    """
    draws = rng.random(2 * _TRIES + 2).tolist()
    low, high = scale
    for attempt in range(_TRIES):
        area = width * height * (low + (high - low) * draws[2 * attempt])
        ratio = math.exp((2 * draws[2 * attempt + 1] - 1) * _LOG_RATIO)
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(draws[-2] * (width - crop_width + 1))
            top = int(draws[-1] * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width = min(width, round(height * 4 / 3))
    crop_height = min(height, round(width * 4 / 3))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height
