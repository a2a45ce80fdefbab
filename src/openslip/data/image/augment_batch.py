"""SimCLR's chain on a whole batch: few and large operations, as an accelerator likes them, and no wait for it."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from openslip.data.image.augment_image import CONTRAST, HUE, LUMA, ORDERS, SATURATION, box

HUE_PLACE = (ORDERS == HUE).argmax(axis=1)
OTHERS = ORDERS[ORDERS != HUE].reshape(-1, 3)  # of each order, the three that are not hue


def augment_batch(
    images: Float[Tensor, "batch 3 height width"], plan: np.ndarray
) -> Float[Tensor, "batch 3 height width"]:
    """The same as `augment_image` on each; `plan` has one sample's parameters a row."""
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

    As two matrix products per image, exact at any size.
    """
    whole, part = box(sigma.astype(np.float64)[:, None])
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


def to_device(values: np.ndarray, like: Tensor) -> Tensor:
    """On the device of `like` and, if not indices, in its precision; the copy does not wait for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if like.is_cuda:
        tensor = tensor.pin_memory().to(like.device, non_blocking=True)
    return tensor.to(like.dtype) if tensor.is_floating_point() else tensor
