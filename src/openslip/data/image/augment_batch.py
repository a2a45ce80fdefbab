"""SimCLR's augmentations on a whole batch: few large operations, which suit a GPU, and no synchronisation with it."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openslip.data.image.augment_image import CONTRAST, HUE, LUMA, ORDERS, SATURATION, box

HUE_PLACE = (ORDERS == HUE).argmax(axis=1)
OTHERS = ORDERS[ORDERS != HUE].reshape(-1, 3)  # the operations other than hue, in sequence, for each order


def augment_batch(
    images: Float[Tensor, "batch 3 height width"], plan: np.ndarray, *, compiled: bool = False
) -> Float[Tensor, "batch 3 height width"]:
    """Augment a batch as `augment_image` augments each image.

    Args:
        images: batch with values in 0..1.
        plan: parameters on the CPU, one row per image.
        compiled: whether to compile the colour operations, each to one or two passes over the images instead of ten.
    """
    place = np.where((plan[:, :4] == (1, 1, 1, 0)).all(axis=1), 4, HUE_PLACE[plan[:, 4].astype(np.int64)])
    # Sort by the position of hue, images without jitter last, so that each colour operation works in place on a slice.
    rows = np.argsort(place, kind="stable")
    plan, place = plan[rows], place[rows]
    grayscale, sigma, flip = plan[:, 5:].T

    x = images.index_select(0, to_device(rows, images)).contiguous()
    jittered = np.count_nonzero(place < 4)
    jitter_(x[:jittered], plan[:jittered], place[:jittered], compiled=compiled)
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


def jitter_(
    x: Float[Tensor, "jittered 3 height width"], plan: np.ndarray, place: np.ndarray, *, compiled: bool
) -> None:
    """Apply the four colour operations in place, in each sample's own order.

    Brightness, contrast and saturation are one expression with different weights, so each turn runs one of them on all
    samples at once.

    Args:
        x: the jittered images, sorted by `place`.
        plan: parameters on the CPU, one row per image.
        place: position of hue in each sample's order, 0 to 3.
        compiled: whether to compile the operations.
    """
    if len(x) == 0:
        return
    blend, shift_hue = (compiled_form(blend_), compiled_form(shift_hue_)) if compiled else (blend_, shift_hue_)
    others = OTHERS[plan[:, 4].astype(np.int64)]
    factors = np.take_along_axis(plan, others, axis=1)
    weights = to_device(
        np.stack([factors, *(np.where(others == of, 1 - factors, 0) for of in (CONTRAST, SATURATION))]), x
    )
    hue = to_device(6 * plan[:, HUE], x)
    starts = np.searchsorted(place, range(5)).tolist()
    for turn in range(4):
        mine = slice(starts[turn], starts[turn + 1])
        if mine.start < mine.stop:
            shift_hue(x[mine], hue[mine])
        if turn < 3:
            blend(x, weights[:, :, turn])


@cache
def compiled_form(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function for batches of any size."""
    form: Any = torch.compile(function, dynamic=True)
    return form


def blend_(x: Float[Tensor, "batch 3 height width"], weights: Float[Tensor, "3 batch"]) -> None:
    """Replace the image by a weighted sum of itself, its mean luma and each pixel's luma, clipped to 0..1."""
    of_image, of_mean, of_pixel = weights.view(3, -1, 1, 1, 1)
    gray = luma(x)
    mean = gray.mean(dim=(2, 3), keepdim=True)
    rest = gray.mul_(of_pixel).add_(mean.mul_(of_mean))
    torch.addcmul(rest, x, of_image, out=x).clamp_(0, 1)


def luma(x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Luma of each pixel, a weighted sum of its channels."""
    red, green, blue = x.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def shift_hue_(x: Float[Tensor, "batch 3 height width"], sixths: Float[Tensor, " batch"]) -> None:
    """Rotate the HSV hue in place by sixths of the hue circle; value and chroma stay the same.

    Scale the channels so that the least becomes 0 and the greatest 1. The hue, counted from red in sixths from -3 to
    3, is then 1 - red + green + blue with the sign of green - blue. A channel whose own hue lies u sixths away has the
    value ||u| - 3| - 1, clipped to 0..1. This needs no comparisons, which are ten times as slow on a CPU.
    """
    red, green, blue = x.split(1, dim=1)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(least)
    hue = (green + blue).sub_(red).sub_(least).div_(chroma.clamp(min=1e-9)).add_(1)  # chroma 0: any hue will do
    hue = hue.copysign_(green - blue).add_(sixths.view(-1, 1, 1, 1))
    hue.sub_((hue / 6).round_(), alpha=6)
    for channel, own in ((red, 0), (green, 2), (blue, -2)):
        scaled = (hue - own).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
        channel.copy_(torch.addcmul(least, chroma, scaled))  # torch.compile does not support a strided `out`


def blur(x: Float[Tensor, "batch 3 height width"], sigma: np.ndarray) -> Float[Tensor, "batch 3 height width"]:
    """Blur as Pillow's GaussianBlur: three box blurs of fractional width along each axis, with edge pixels repeated.

    Two matrix products per image, exact at any image size. `sigma` has one standard deviation per image, in pixels.
    """
    whole, part = box(sigma.astype(np.float64)[:, None])
    reach = int(whole.max()) + 1
    distance = np.abs(np.arange(-reach, reach + 1))
    taps = (distance <= whole) + part * (distance == whole + 1)
    taps = (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)  # [batch, 2 reach + 1]
    batch, channels, height, width = x.shape
    across = box_matrix(taps, width, x)
    x = x.reshape(batch, channels * height, width).bmm(across.mT)
    x = x.view(batch, channels, height, width).transpose(1, 2).reshape(batch, height, channels * width)
    down = across if height == width else box_matrix(taps, height, x)
    return down.bmm(x).view(batch, height, channels, width).transpose(1, 2)


def box_matrix(taps: np.ndarray, size: int, like: Tensor) -> Float[Tensor, "batch size size"]:
    """Matrices that apply each filter of `taps` [batch, taps] three times along an axis of `size` pixels.

    Taps beyond an edge read the edge pixel. They are summed on the CPU, because a GPU sums them in no fixed order.
    """
    runs, entries = tap_runs(taps.shape[1], size)
    taps = taps.astype(np.float64) if like.dtype == torch.float64 else taps  # precision of the sums
    sums = [np.zeros_like(taps[:, 0]), *(taps[:, first : last + 1].cumsum(axis=1)[:, -1] for first, last in runs)]
    table = to_device(np.stack(sums, axis=1), like)
    once = table.index_select(1, to_device(entries, like)).view(-1, size, size)
    return once @ once @ once


@lru_cache
def tap_runs(taps: int, size: int) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Find the run of taps with which each output pixel of an axis reads each input pixel.

    Returns:
        The distinct runs as pairs of first and last tap; and for each of the `size` x `size` pairs of output and input
        pixel, row by row, the number of its run counted from 1, or 0 if no tap reaches that far.
    """
    own = np.arange(size) - np.arange(size)[:, None] + taps // 2  # the tap that reads the pixel, without edges
    first, last = own.clip(min=0), own.clip(max=taps - 1)
    first[:, 0], last[:, -1] = 0, taps - 1
    reached = first <= last
    runs, places = np.unique(np.stack([first[reached], last[reached]]), axis=1, return_inverse=True)
    entries = np.zeros((size, size), np.int32)
    entries[reached] = places.reshape(-1) + 1
    return list(map(tuple, runs.T.tolist())), entries.reshape(-1)


def to_device(values: np.ndarray, like: Tensor) -> Tensor:
    """Copy an array to the device of `like` without synchronisation; floating-point values get the dtype of `like`."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if like.is_cuda:
        tensor = tensor.pin_memory().to(like.device, non_blocking=True)
    return tensor.to(like.dtype) if tensor.is_floating_point() else tensor
