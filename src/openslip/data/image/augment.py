"""SimCLR's augmentations, drawn in the worker and applied on the training device with parameters per sample.

The published chain (SLIP, main.py): colour jitter, grayscale, Gaussian blur, horizontal flip. The operations are those
of torchvision and Pillow at the same parameters, but on floats: torchvision and Pillow round to 8 bits after each one.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from openslip.data.image.augment_batch import augment_batch
from openslip.data.image.augment_image import ORDERS, augment_image
from openslip.errors import UserError


class SimCLRAugment:
    """SimCLR's augmentations with the strengths of MoCo v2, which SLIP adopted.

    Chen et al. 2020, arXiv:2002.05709, appendix A.

    Args:
        brightness: the brightness factor is drawn from 1 - brightness to 1 + brightness.
        contrast: the contrast factor is drawn from 1 - contrast to 1 + contrast.
        saturation: the saturation factor is drawn from 1 - saturation to 1 + saturation.
        hue: the hue shift is drawn from -hue to hue, as a share of the hue circle.
        jitter_probability: probability of the colour jitter, i.e. of the four above together, in random order.
        grayscale_probability: probability of the conversion to grayscale.
        blur_probability: probability of the Gaussian blur.
        blur_sigma: lowest and highest standard deviation of the blur, in pixels.
        flip_probability: probability of the horizontal flip.
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
        """Compile the batched colour operations, which run on a GPU only."""
        self.compiled = True

    def draw(self, rng: np.random.Generator) -> Float32[np.ndarray, " parameters"]:
        """Draw one sample's parameters: [brightness, contrast, saturation, hue, order, grayscale, sigma, flip].

        The first four are 1, 1, 1, 0 without jitter; sigma is 0 without blur.
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
        """Augment images with values in 0..1, independently of each other.

        Args:
            images: batch of images on the training device.
            parameters: one row of `draw` per image, on the CPU.
        """
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
    """Normalise each channel: (x - mean) / std; `out` may be given to save an allocation."""
    out = torch.empty(images.shape, dtype=images.dtype, device=images.device) if out is None else out
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        # One pass per channel, with numbers: tensors of mean and std would have to be copied to the device first.
        torch.add(torch.tensor(-m / s, dtype=images.dtype), images[:, channel], alpha=1 / s, out=out[:, channel])
    return out
