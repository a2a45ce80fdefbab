"""SimCLR's augmentations on one image: few passes over arrays that fit the CPU cache, neutral operations skipped.

The result is bit for bit the same, whatever else is in the batch.
"""

import itertools
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = np.array(list(itertools.permutations(range(4))))
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's grayscale
BLOCK = 16  # number of rows or columns that one matrix product blurs


def augment_image(image: Float[Tensor, "3 height width"], parameters: np.ndarray) -> Float[Tensor, "3 height width"]:
    """Apply flip, colour jitter in the drawn order, grayscale and blur; the result may be a strided view."""
    *factors, order, grayscale, sigma, flip = parameters.tolist()
    x = image.flip(2).contiguous() if flip else image.clone(memory_format=torch.contiguous_format)
    for operation in ORDERS[int(order)].tolist():
        if factors[operation] != NEUTRAL[operation]:
            COLOUR[operation](x, factors[operation])
    if grayscale:
        x = luma(x)[None]
    if sigma:
        x = blur(x, sigma)
    return x.expand(3, -1, -1)


def brighten_(x: Float[Tensor, "3 height width"], factor: float) -> None:
    """Multiply the image by `factor` in place; here as below, only a factor above 1 needs clipping to 0..1."""
    x.mul_(factor)
    if factor > 1:
        x.clamp_(max=1)


def contrast_(x: Float[Tensor, "3 height width"], factor: float) -> None:
    """Blend the image with its mean luma in place: factor * image + (1 - factor) * mean."""
    mean = sum(weight * total for weight, total in zip(LUMA, x.sum((1, 2)).tolist(), strict=True)) / x[0].numel()
    torch.add(torch.tensor((1 - factor) * mean, dtype=x.dtype), x, alpha=factor, out=x)
    if factor > 1:
        x.clamp_(0, 1)


def saturate_(x: Float[Tensor, "3 height width"], factor: float) -> None:
    """Blend each pixel with its own luma in place: factor * image + (1 - factor) * luma."""
    torch.add(luma(x, 1 - factor), x, alpha=factor, out=x)
    if factor > 1:
        x.clamp_(0, 1)


def luma(x: Float[Tensor, "3 height width"], times: float = 1) -> Float[Tensor, "height width"]:
    """Luma of each pixel, a weighted sum of its channels, multiplied by `times`."""
    red, green, blue = x
    return (red * (times * LUMA[0])).add_(green, alpha=times * LUMA[1]).add_(blue, alpha=times * LUMA[2])


def shift_hue_(x: Float[Tensor, "3 height width"], shift: float) -> None:
    """Rotate the HSV hue in place by a share of the hue circle; value and chroma stay the same.

    On the hexagon of hues, a rotation by k sixths, 0 <= k <= 1, is piecewise linear in the channels themselves: red
    becomes (least + greatest) / 2 + red - green + (1/2 - k) chroma sign(green - blue), clipped to least..greatest, and
    the other channels follow by cyclic exchange. A rotation the other way is the same with green and blue exchanged. A
    rotation by two sixths permutes the channels.
    """
    thirds = round(3 * shift)
    sixths = 6 * shift - 2 * thirds
    roles = (0, 1, 2) if sixths >= 0 else (0, 2, 1)
    first, second, third = (x[role] for role in roles)
    least = torch.minimum(first, second)
    torch.minimum(least, third, out=least)
    greatest = torch.maximum(first, second)
    torch.maximum(greatest, third, out=greatest)
    middle = torch.lerp(least, greatest, 0.5)
    chroma = torch.sub(greatest, least).mul_(abs(0.5 - abs(sixths)))
    steps = first - second, second - third, third - first
    sign = 1 if abs(sixths) < 0.5 else -1
    for place, role in enumerate(roles):
        y = x[(role + thirds) % 3]
        torch.copysign(chroma, steps[(place + 1) % 3], out=y)
        torch.add(steps[place], y, alpha=sign, out=y).add_(middle)
        torch.clamp(y, least, greatest, out=y)


COLOUR = {BRIGHTNESS: brighten_, CONTRAST: contrast_, SATURATION: saturate_, HUE: shift_hue_}


def blur(x: Float[Tensor, "channels height width"], sigma: float) -> Float[Tensor, "channels height width"]:
    """Blur as Pillow's GaussianBlur: three box blurs of fractional width along each axis, with edge pixels repeated.

    Each matrix product computes one block of rows or columns from only the pixels that the block reads, because the
    matrix of a whole axis is nearly all zeros.
    """
    channels, height, width = x.shape
    whole, part = (float(value) for value in box(np.float64(sigma)))
    reach = 3 * (int(whole) + 1)

    down = block_matrices(height, int(whole), part, x.dtype)
    rows = pad(x.transpose(0, 1), (0, 0, 0, 0, reach, len(down) * BLOCK - height + reach))
    row = channels * width
    blurred = down.bmm(rows.as_strided((len(down), down.shape[2], row), (BLOCK * row, row, 1)))

    across = down if width == height else block_matrices(width, int(whole), part, x.dtype)
    columns = pad(blurred.view(-1, width)[: height * channels], (reach, len(across) * BLOCK - width + reach))
    windows = columns.as_strided((len(across), len(columns), across.shape[2]), (BLOCK, columns.shape[1], 1))
    result = x.new_empty(len(columns), len(across), BLOCK)
    torch.bmm(windows, across.mT, out=result.transpose(0, 1))
    return result.view(height, channels, -1)[:, :, :width].transpose(0, 1)


def box(sigma: np.ndarray | np.float64) -> tuple[np.ndarray | np.float64, np.ndarray | np.float64]:
    """Radius of the box filter that, applied three times, blurs by `sigma`: whole pixels and a part of the next one.

    Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution by extended box filtering".
    """
    variance = sigma**2 / 3
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole, part


def block_matrices(size: int, whole: int, part: float, dtype: torch.dtype) -> Float[Tensor, "blocks block reached"]:
    """Matrices that blur an axis of `size` pixels: one per block of output pixels, over all the pixels it reads."""
    terms = block_terms(size, whole, dtype)
    powers = torch.tensor([part**power / (2 * (whole + part) + 1) ** 3 for power in range(4)], dtype=dtype)
    return powers.matmul(terms.view(4, -1)).view(terms.shape[1:])


@lru_cache
def block_terms(size: int, whole: int, dtype: torch.dtype) -> Float[Tensor, "4 blocks block reached"]:
    """Coefficients of the blur matrices as a polynomial in `part`: (inner + part * outer)^3, of integer matrices."""
    inner, outer = np.zeros((size, size)), np.zeros((size, size))
    for distance in range(-whole - 1, whole + 2):
        source = (np.arange(size) + distance).clip(0, size - 1)
        np.add.at(outer if abs(distance) == whole + 1 else inner, (np.arange(size), source), 1)
    blocks, reach = -(-size // BLOCK), 3 * (whole + 1)
    terms = np.zeros((4, blocks, BLOCK, BLOCK + 2 * reach))
    for power, factors in itertools.product(range(4), itertools.product((0, 1), repeat=3)):
        if sum(factors) == power:
            matrix = np.linalg.multi_dot([outer if factor else inner for factor in factors])
            matrix = np.pad(matrix, ((0, blocks * BLOCK - size), (reach, blocks * BLOCK - size + reach)))
            for block in range(blocks):
                start = block * BLOCK
                terms[power, block] += matrix[start : start + BLOCK, start : start + BLOCK + 2 * reach]
    return torch.from_numpy(terms).to(dtype)
