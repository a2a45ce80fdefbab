"""The random crops of training, and what becomes of them on the training device."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from openslip.data.image.augment import Augment, normalise
from openslip.data.image.decode import Box, Decoder
from openslip.errors import UserError


class View:
    """One random resized crop of a decoded picture, and what becomes of it on the training device.

    The crop is torchvision's RandomResizedCrop: bilinear with antialiasing, ratio 3/4 to 4/3.

    Args:
        size: side of the square crop, in pixels.
        scale: least and most share of the picture's area, (0.08, 1) in SimCLR, (0.5, 1) for SLIP's image view.
        augment: draws its parameters with the crop and is applied by `finish`; None: the crop alone.
    """

    def __init__(self, *, size: int, scale: tuple[float, float] | list[float], augment: Augment | None) -> None:
        low, high = scale
        if not 0 < low <= high:
            raise UserError(f"view scale={list(scale)}: expected [low, high] with 0 < low <= high, such as [0.08, 1]")
        self.size = size
        self.scale = (float(low), float(high))
        self.augment = augment

    def __call__(
        self, picture: Any, decoder: Decoder, rng: np.random.Generator
    ) -> tuple[UInt8[np.ndarray, "3 size size"], Float32[np.ndarray, " parameters"] | None]:
        """The crop of what `decoder` decoded, and the augmentation's parameters."""
        box = random_box(*decoder.size(picture), self.scale, rng)
        return decoder.crop(picture, box, self.size), None if self.augment is None else self.augment.draw(rng)

    def finish(
        self,
        images: UInt8[Tensor, "batch 3 size size"],
        parameters: Float32[Tensor, "batch parameters"] | None,
        mean: list[float],
        std: list[float],
    ) -> Float32[Tensor, "batch 3 size size"]:
        """Augments and normalises a batch on its device; the parameters stay on the CPU."""
        if images.is_cpu:
            # The cache holds one picture, which therefore goes through the whole chain before the next. The batch's
            # memory is numpy's, which asks for huge pages: the faults of small ones cost as much as half the chain.
            length, finished = 1, torch.from_numpy(np.empty(images.shape, np.float32))
        else:
            length, finished = len(images), torch.empty(images.shape, device=images.device)
        for start in range(0, len(images), length):
            part = slice(start, start + length)
            x = images[part].float().div_(255)
            if self.augment is not None and parameters is not None:
                x = self.augment(x, parameters[part])
            normalise(x, mean, std, out=finished[part])
        return finished


_LOG_RATIO = math.log(4 / 3)
_TRIES = 10


def random_box(width: int, height: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """A box with the distribution of torchvision's RandomResizedCrop.get_params.

    Always takes the same number of draws, so that what is drawn next does not depend on the picture's shape.
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
