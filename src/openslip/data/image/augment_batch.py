"""SimCLR's chain on a whole batch: few and large operations, as an accelerator likes them, and no wait for it."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openslip.data.image.augment_image import CONTRAST, HUE, LUMA, ORDERS, SATURATION, box

HUE_PLACE = (ORDERS == HUE).argmax(axis=1)
OTHERS = ORDERS[ORDERS != HUE].reshape(-1, 3)  # of each order, the three that are not hue


def augment_batch(
    images: Float[Tensor, "batch 3 height width"], plan: np.ndarray, *, compiled: bool = False
) -> Float[Tensor, "batch 3 height width"]:
    """The same as `augment_image` on each; `plan` has one sample's parameters a row.

    Colour operations may be `compiled`, each to one or two passes over the images in place of ten.
    """
    place = np.where((plan[:, :4] == (1, 1, 1, 0)).all(axis=1), 4, HUE_PLACE[plan[:, 4].astype(np.int64)])
    # Sorted by the place of hue, those without jitter last: each colour operation then works in place on a slice.
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
    """The four colour operations in each sample's own order, in place; samples are sorted by the place of their hue.

    The three others are one and the same line with different numbers, so they run on all samples at once.
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
    """The function compiled for batches of any size."""
    form: Any = torch.compile(function, dynamic=True)
    return form


def blend_(x: Float[Tensor, "batch 3 height width"], weights: Float[Tensor, "3 batch"]) -> None:
    """Weighted sum of the image, its mean luma and each pixel's luma: clipped, in place."""
    of_image, of_mean, of_pixel = weights.view(3, -1, 1, 1, 1)
    gray = luma(x)
    mean = gray.mean(dim=(2, 3), keepdim=True)
    rest = gray.mul_(of_pixel).add_(mean.mul_(of_mean))
    torch.addcmul(rest, x, of_image, out=x).clamp_(0, 1)


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
        channel.copy_(torch.addcmul(least, chroma, scaled))  # the compiler knows no `out` with strides of its own


def blur(x: Float[Tensor, "batch 3 height width"], sigma: np.ndarray) -> Float[Tensor, "batch 3 height width"]:
    """Pillow's GaussianBlur: three box blurs of fractional width along each axis, edge pixels repeated.

    As two matrix products per image, exact at any size.
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
    """The filters [batch, taps] along an axis of `size` pixels, three times over, as the matrices that do it.

    Taps beyond an edge read the edge pixel. They are added up here, because a GPU would add them in any order.
    """
    runs, entries = tap_runs(taps.shape[1], size)
    taps = taps.astype(np.float64) if like.dtype == torch.float64 else taps  # the precision in which they are added
    sums = [np.zeros_like(taps[:, 0]), *(taps[:, first : last + 1].cumsum(axis=1)[:, -1] for first, last in runs)]
    table = to_device(np.stack(sums, axis=1), like)
    once = table.index_select(1, to_device(entries, like)).view(-1, size, size)
    return once @ once @ once


@lru_cache
def tap_runs(taps: int, size: int) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Which taps a pixel is read by, for every pixel of an axis and every one that is read.

    Returns:
        The runs of taps that occur, first and last; and for each of the `size` x `size` pairs, row by row, the place of
        its run, counted from 1, or 0 where no tap reaches so far.
    """
    own = np.arange(size) - np.arange(size)[:, None] + taps // 2  # the tap that reads the pixel, were there no edges
    first, last = own.clip(min=0), own.clip(max=taps - 1)
    first[:, 0], last[:, -1] = 0, taps - 1
    reached = first <= last
    runs, places = np.unique(np.stack([first[reached], last[reached]]), axis=1, return_inverse=True)
    entries = np.zeros((size, size), np.int32)
    entries[reached] = places.reshape(-1) + 1
    return list(map(tuple, runs.T.tolist())), entries.reshape(-1)


def to_device(values: np.ndarray, like: Tensor) -> Tensor:
    """On the device of `like` and, if not indices, in its precision; the copy does not wait for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if like.is_cuda:
        tensor = tensor.pin_memory().to(like.device, non_blocking=True)
    return tensor.to(like.dtype) if tensor.is_floating_point() else tensor
