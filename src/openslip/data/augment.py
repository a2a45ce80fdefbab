"""SimCLR's augmentations on whole batches, on any device, each sample with parameters of its own.

The published chain (SLIP, main.py): colour jitter, grayscale, Gaussian blur, horizontal flip. Equal to torchvision's
functions at the same parameters, but on floats: torchvision rounds to 8 bits after every operation.
"""

import itertools
import math
from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

ORDERS = torch.tensor(list(itertools.permutations(range(4))))  # of brightness, contrast, saturation, hue
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's grayscale


class Augment(ABC):
    """Draws its parameters where a sample is decoded, and is applied where the batch is trained on."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Float32[np.ndarray, " parameters"]:
        """One sample's parameters."""

    @abstractmethod
    def __call__(
        self, images: Float[Tensor, "batch 3 height width"], parameters: Float[Tensor, "batch parameters"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """The batch, values in 0..1 before and after."""


class SimCLRAugment(Augment):
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
        self.strength = np.array([brightness, contrast, saturation])
        self.hue = hue
        self.jitter_probability = jitter_probability
        self.grayscale_probability = grayscale_probability
        self.blur_probability = blur_probability
        self.blur_sigma = blur_sigma
        self.flip_probability = flip_probability

    def draw(self, rng: np.random.Generator) -> Float32[np.ndarray, " parameters"]:
        """[brightness, contrast, saturation, hue, order, grayscale, sigma, flip]; 1, 1, 1, 0 is no jitter, sigma 0 no blur."""
        u = rng.random(10)
        parameters = np.zeros(8, np.float32)
        parameters[:3] = 1
        if u[0] < self.jitter_probability:
            parameters[:3] = 1 + (2 * u[1:4] - 1) * self.strength
            parameters[3] = (2 * u[4] - 1) * self.hue
            parameters[4] = int(u[5] * len(ORDERS))
        parameters[5] = u[6] < self.grayscale_probability
        if u[7] < self.blur_probability:
            low, high = self.blur_sigma
            parameters[6] = low + (high - low) * u[8]
        parameters[7] = u[9] < self.flip_probability
        return parameters

    def __call__(
        self, images: Float[Tensor, "batch 3 height width"], parameters: Float[Tensor, "batch parameters"]
    ) -> Float[Tensor, "batch 3 height width"]:
        brightness, contrast, saturation, hue, order, grayscale, sigma, flip = parameters.T
        images = jitter(images, brightness, contrast, saturation, hue, order.long())
        images = torch.where(grayscale.bool()[:, None, None, None], luma(images).expand_as(images), images)
        images = blur(images, sigma)
        return torch.where(flip.bool()[:, None, None, None], images.flip(3), images)


def jitter(
    images: Float[Tensor, "batch 3 height width"],
    brightness: Float[Tensor, " batch"],
    contrast: Float[Tensor, " batch"],
    saturation: Float[Tensor, " batch"],
    hue: Float[Tensor, " batch"],
    order: Tensor,
) -> Float[Tensor, "batch 3 height width"]:
    """The four colour operations in each sample's own order: at each place, every operation on those whose turn it is."""
    result = images.clone()
    active = ((brightness != 1) | (contrast != 1) | (saturation != 1) | (hue != 0)).nonzero()[:, 0]
    steps = ORDERS.to(images.device)[order[active]]  # [active, 4]
    operations = (
        lambda x, rows: (x * brightness[rows].view(-1, 1, 1, 1)).clamp_(0, 1),
        lambda x, rows: blend(x, luma(x).mean(dim=(1, 2, 3), keepdim=True), contrast[rows]),
        lambda x, rows: blend(x, luma(x), saturation[rows]),
        lambda x, rows: shift_hue(x, hue[rows]),
    )
    for place in range(4):
        for operation, apply in enumerate(operations):
            rows = active[steps[:, place] == operation]
            result[rows] = apply(result[rows], rows)
    return result


def luma(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Brightness as the eye weighs the channels."""
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def blend(images: Tensor, other: Tensor, factor: Float[Tensor, " batch"]) -> Tensor:
    """`factor` of the image and the rest of the other, clipped."""
    return torch.lerp(other, images, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def shift_hue(
    images: Float[Tensor, "batch 3 height width"], shift: Float[Tensor, " batch"]
) -> Float[Tensor, "batch 3 height width"]:
    """Turns the hue of HSV by a share of the circle, without a branch: value and chroma stay, the hexagon is rotated."""
    red, green, blue = images.unbind(1)
    value, least = images.amax(dim=1), images.amin(dim=1)
    chroma = value - least
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = (hue + 6 * shift.view(-1, 1, 1)) % 6
    # f(n) = V - C * clamp(min(k, 4 - k), 0, 1) with k = (n + H) mod 6 and n = 5, 3, 1 for red, green, blue
    offsets = torch.tensor([5.0, 3.0, 1.0], device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    k = (offsets + sixths[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def blur(
    images: Float[Tensor, "batch 3 height width"], sigma: Float[Tensor, " batch"]
) -> Float[Tensor, "batch 3 height width"]:
    """Separable Gaussian of each sample's own standard deviation, borders repeated; sigma 0 leaves the sample alone."""
    rows = (sigma > 0).nonzero()[:, 0]
    if len(rows) == 0:
        return images
    radius = min(math.ceil(3 * float(sigma.max())), min(images.shape[2:]) - 1)
    distance = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (distance / sigma[rows, None]).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)  # one per sample and channel
    x = images[rows].flatten(0, 1)[None]  # [1, 3 B, H, W]: a grouped convolution takes a kernel per channel
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel[:, None, None], groups=len(kernel))
    x = F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), kernel[:, None, :, None], groups=len(kernel))
    result = images.clone()
    result[rows] = x[0].view(len(rows), *images.shape[1:])
    return result


def normalise(
    images: Float[Tensor, "batch 3 height width"], mean: list[float], std: list[float]
) -> Float[Tensor, "batch 3 height width"]:
    """Per channel, (x - mean) / std."""
    shape = (1, 3, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)
