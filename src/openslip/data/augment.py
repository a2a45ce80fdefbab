"""SimCLR's augmentations on whole batches, on any device, each sample with parameters of its own.

The published chain (SLIP, main.py): colour jitter, grayscale, Gaussian blur, horizontal flip. What torchvision and
Pillow compute at the same parameters, but on floats: they round to 8 bits after every operation.
"""

import itertools
from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from openslip.errors import UserError

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = np.array(list(itertools.permutations(range(4))))
HUE_PLACE = (ORDERS == HUE).argmax(axis=1)
OTHERS = ORDERS[ORDERS != HUE].reshape(-1, 3)  # of each order, the three that are not hue
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's grayscale


class Augment(ABC):
    """Draws its parameters where a sample is decoded, and is applied where the batch is trained on."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Float32[np.ndarray, " parameters"]:
        """One sample's parameters."""

    @abstractmethod
    def __call__(
        self, images: Float[Tensor, "batch 3 height width"], parameters: Float32[Tensor, "batch parameters"]
    ) -> Float[Tensor, "batch 3 height width"]:
        """The batch, values in 0..1 before and after; parameters that lie on the CPU cost no synchronisation."""


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

    def draw(self, rng: np.random.Generator) -> Float32[np.ndarray, " parameters"]:
        """[brightness, contrast, saturation, hue, order, grayscale, sigma, flip].

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
        plan = parameters.numpy(force=True)
        place = np.where((plan[:, :4] == (1, 1, 1, 0)).all(axis=1), 4, HUE_PLACE[plan[:, 4].astype(np.int64)])
        # Sorted by the place of hue, those without jitter last: each colour operation then works in place on a slice.
        rows = np.argsort(place, kind="stable")
        plan, place = plan[rows], place[rows]
        grayscale, sigma, flip = plan[:, 5:].T

        x = images.index_select(0, to_device(rows, images)).contiguous()
        jittered = np.count_nonzero(place < 4)
        jitter_(x[:jittered], plan[:jittered], place[:jittered])
        if (chosen := grayscale > 0).any():
            index = to_device(chosen.nonzero()[0], x)
            x.index_copy_(0, index, luma(x.index_select(0, index)).expand(-1, 3, -1, -1))
        if (chosen := sigma > 0).any():
            index = to_device(chosen.nonzero()[0], x)
            x.index_copy_(0, index, blur(x.index_select(0, index), sigma[chosen]))
        if (chosen := flip > 0).any():
            index = to_device(chosen.nonzero()[0], x)
            x.index_copy_(0, index, x.index_select(0, index).flip(3))
        return x.index_select(0, to_device(np.argsort(rows), x))


def jitter_(x: Float[Tensor, "jittered 3 height width"], plan: np.ndarray, place: np.ndarray) -> None:
    """The four colour operations in each sample's own order, in place; samples are sorted by the place of their hue.

    The three others are one and the same line with different numbers, so they run on all samples at once.
    """
    if len(x) == 0:
        return
    others = OTHERS[plan[:, 4].astype(np.int64)]
    factors = np.take_along_axis(plan, others, axis=1)
    hue = to_device(6 * plan[:, HUE], x)
    starts = np.searchsorted(place, range(5)).tolist()
    for turn in range(4):
        mine = slice(starts[turn], starts[turn + 1])
        if mine.start < mine.stop:
            shift_hue_(x[mine], hue[mine])
        if turn < 3:
            blend_(x, factors[:, turn], others[:, turn])


def blend_(x: Float[Tensor, "batch 3 height width"], factor: np.ndarray, operation: np.ndarray) -> None:
    """`factor` of the image and the rest of black, of its mean luma, or of each pixel's luma: clipped, in place."""
    of_mean = to_device(np.where(operation == CONTRAST, 1 - factor, 0), x).view(-1, 1, 1, 1)
    of_pixel = to_device(np.where(operation == SATURATION, 1 - factor, 0), x).view(-1, 1, 1, 1)
    gray = luma(x)
    mean = gray.mean(dim=(2, 3), keepdim=True)
    rest = gray.mul_(of_pixel).add_(mean.mul_(of_mean))
    torch.addcmul(rest, x, to_device(factor, x).view(-1, 1, 1, 1), out=x).clamp_(0, 1)


def luma(x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Brightness as the eye weighs the channels."""
    red, green, blue = x.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def shift_hue_(x: Float[Tensor, "batch 3 height width"], sixths: Float[Tensor, " batch"]) -> None:
    """Turns the hue of HSV by sixths of the circle, in place: value and chroma stay, the hexagon is rotated.

    With channels scaled to 0..1 between the least and the greatest, the hue counted from red in sixths, -3..3, is
    1 - red + green + blue with the sign of green - blue; and a channel whose own hue lies u away is ||u| - 3| - 1,
    clipped. Without comparisons, which are ten times as slow on a CPU.
    """
    red, green, blue = x.split(1, dim=1)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(least)
    hue = (green + blue).sub_(red).sub_(least).div_(chroma.clamp(min=1e-9)).add_(1)  # chroma 0: any hue will do
    hue = hue.copysign_(green - blue).add_(sixths.view(-1, 1, 1, 1))
    hue.sub_((hue / 6).round_(), alpha=6)
    for channel, own in ((red, 0), (green, 2), (blue, -2)):
        scaled = (hue - own).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(least, chroma, scaled, out=channel)


def blur(x: Float[Tensor, "batch 3 height width"], sigma: np.ndarray) -> Float[Tensor, "batch 3 height width"]:
    """Pillow's GaussianBlur: three box blurs of fractional width along each axis, edge pixels repeated.

    As two matrix products per picture, exact at any size. Gwosdek et al. 2011, "Theoretical foundations of Gaussian
    convolution by extended box filtering".
    """
    variance = sigma.astype(np.float64)[:, None] ** 2 / 3
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    reach = int(whole.max()) + 1
    distance = np.abs(np.arange(-reach, reach + 1))
    taps = (distance <= whole) + part * (distance == whole + 1)
    taps = to_device((taps / taps.sum(axis=1, keepdims=True)).astype(np.float32), x)  # [batch, 2 reach + 1]
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels * height, width).bmm(box_matrix(taps, width).mT)
    x = x.view(batch, channels, height, width).transpose(1, 2).reshape(batch, height, channels * width)
    return box_matrix(taps, height).bmm(x).view(batch, height, channels, width).transpose(1, 2)


def box_matrix(taps: Float[Tensor, "batch taps"], size: int) -> Float[Tensor, "batch size size"]:
    """The filter along an axis of `size` pixels, three times over, as the matrix that does it."""
    reach = taps.shape[1] // 2
    source = (np.arange(size)[:, None] + np.arange(-reach, reach + 1)).clip(0, size - 1)
    source = to_device(source, taps).expand(len(taps), -1, -1)
    once = taps.new_zeros(len(taps), size, size).scatter_add_(2, source, taps[:, None].expand(-1, size, -1))
    return once @ once @ once


def normalise(
    images: Float[Tensor, "batch 3 height width"], mean: list[float], std: list[float]
) -> Float[Tensor, "batch 3 height width"]:
    """Per channel, (x - mean) / std."""
    result = torch.empty_like(images)
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        # Numbers, not tensors: those would have to be copied to the device first.
        torch.sub(images[:, channel], m, out=result[:, channel]).div_(s)
    return result


def to_device(values: np.ndarray, like: Tensor) -> Tensor:
    """On the device of `like` and, if not indices, in its precision; the copy does not wait for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if like.is_cuda:
        tensor = tensor.pin_memory().to(like.device, non_blocking=True)
    return tensor.to(like.dtype) if tensor.is_floating_point() else tensor
