"""SimCLR's augmentations, drawn with the crop and applied on the training device, each sample by its own parameters.

The published chain (SLIP, main.py): colour jitter, grayscale, Gaussian blur, horizontal flip. What torchvision and
Pillow compute at the same parameters, but on floats: they round to 8 bits after every operation.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from openslip.data.image.augment_batch import augment_batch
from openslip.data.image.augment_image import ORDERS, augment_image
from openslip.errors import UserError


class SimCLRAugment:
    """Chen et al. 2020, arXiv:2002.05709, appendix A, with the strengths of MoCo v2 that SLIP took over.

    Args:
        brightness: factor in 1 +- this; likewise `contrast` and `saturation`.
        contrast: see brightness.
        saturation: see brightness.
        hue: shift in +- this share of the colour circle.
        jitter_probability: of the four together, in random order.
        grayscale_probability: of dropping all colour.
        blur_probability: of the Gaussian blur.
        blur_sigma: least and most standard deviation in pixels.
        flip_probability: of the mirror image.
    """

    compiled = False

    def __init__(
        self,
        *,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        jitter_probability: float,
        grayscale_probability: float,
        blur_probability: float,
        blur_sigma: tuple[float, float] | list[float],
        flip_probability: float,
    ) -> None:
        for name, value, most in (
            ("brightness", brightness, 1),
            ("contrast", contrast, 1),
            ("saturation", saturation, 1),
            ("hue", hue, 0.5),
        ):
            if not 0 <= value <= most:
                raise UserError(f"augment.{name}={value}: expected 0 to {most}")
        if len(blur_sigma) != 2 or not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise UserError(f"augment.blur_sigma={list(blur_sigma)}: expected [least, most], such as [0.1, 2.0]")
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.jitter_probability = jitter_probability
        self.grayscale_probability = grayscale_probability
        self.blur_probability = blur_probability
        self.blur_sigma = blur_sigma
        self.flip_probability = flip_probability

    def compile(self) -> None:
        """Compile the colour operations on batches, which are what a GPU runs."""
        self.compiled = True

    def draw(self, rng: np.random.Generator) -> Float32[np.ndarray, " parameters"]:
        """One sample's parameters: [brightness, contrast, saturation, hue, order, grayscale, sigma, flip].

        1, 1, 1, 0 is no jitter, sigma 0 no blur.
        """
        u = rng.random(10).tolist()
        jitter = (1.0, 1.0, 1.0, 0.0, 0)
        if u[0] < self.jitter_probability:
            jitter = (
                1 + (2 * u[1] - 1) * self.brightness,
                1 + (2 * u[2] - 1) * self.contrast,
                1 + (2 * u[3] - 1) * self.saturation,
                (2 * u[4] - 1) * self.hue,
                int(u[5] * len(ORDERS)),
            )
        low, high = self.blur_sigma
        sigma = low + (high - low) * u[8] if u[7] < self.blur_probability else 0
        rest = (u[6] < self.grayscale_probability, sigma, u[9] < self.flip_probability)
        return np.array((*jitter, *rest), np.float32)

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "batch 3 height width"], parameters: Float32[Tensor, "batch parameters"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Values in 0..1 before and after; a sample's result does not depend on the others of the batch."""
        plan = parameters.numpy(force=True)
        if not images.is_cpu:
            return augment_batch(images, plan, compiled=self.compiled)
        augmented = [augment_image(image, row) for image, row in zip(images, plan, strict=True)]
        return augmented[0][None] if len(augmented) == 1 else torch.stack(augmented)


def normalise(
    images: Float[Tensor, "batch 3 height width"],
    mean: list[float],
    std: list[float],
    out: Float[Tensor, "batch 3 height width"] | None = None,
) -> Float[Tensor, "batch 3 height width"]:
    """Per channel, (x - mean) / std."""
    out = torch.empty(images.shape, dtype=images.dtype, device=images.device) if out is None else out
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        # One pass, and numbers instead of tensors of the device's: those would have to be copied to it first.
        torch.add(torch.tensor(-m / s, dtype=images.dtype), images[:, channel], alpha=1 / s, out=out[:, channel])
    return out
