"""Compares the device's kernels and steps with float64 on the CPU; tolerances: docs/NUMERICS.md#kernels.

`layers` checks attention layers, `steps` properties of a training step, and this file augmentation and losses.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from openslip.data.image.augment import SimCLRAugment
from openslip.data.image.augment_batch import augment_batch
from openslip.data.image.augment_image import ORDERS, augment_image
from openslip.errors import first_line
from openslip.objectives.clip import info_nce
from openslip.objectives.simclr import nt_xent
from openslip.objectives.similarity import Features
from openslip.training.compiling import why_not
from openslip.verify.deviation import TOLERANCES, Arrays, Part, Row, relative, worst
from openslip.verify.layers import caption_rows, class_token_rows, image_rows
from openslip.verify.recording import DTYPES, as_array, precision
from openslip.verify.splits import in_tiles
from openslip.verify.steps import micro_batch_rows, skipped_step_rows

PAIRS, WIDTH, TILE = 300, 64, 128  # for the losses; the tile size does not divide the number of pairs
AUGMENTED, SIDE = 48, 40  # number of images and their side in pixels: each order of colour operations occurs twice
# Absolute tolerance of an augmented pixel in 0..1: float32 rounding, or half an 8-bit level for the 11 bits of TF32.
PIXEL_TOLERANCES = {"float64": 1e-5, "float32": 1e-5, "tf32": 0.5 / 255}


def kernel_rows(device: str, dtype: str) -> list[Row]:
    """Return rows of attention in this format and in bfloat16, of augmentation, losses and steps.

    Notes name the attention kernels. Compiled augmentation is checked too if `compile=auto` would be on.
    """
    single = "float32" if dtype == "bfloat16" else dtype  # augmentation and losses are outside autocast
    checks: list[tuple[str, Callable[[str, str], list[Row]], str]] = []
    for name, check in (("images", image_rows), ("class token", class_token_rows), ("captions", caption_rows)):
        checks += [(f"attention of {name}", check, number_type) for number_type in dict.fromkeys((dtype, "bfloat16"))]
    checks += [("augmentation in batches", augmentation_rows, single), ("losses in tiles", tiled_loss_rows, single)]
    if torch.device(device).type == "cuda" and why_not() is None:
        checks.append(("compiled augmentation", partial(augmentation_rows, compiled=True), single))
    checks += [("skipped step", skipped_step_rows, dtype), ("micro-batches", micro_batch_rows, dtype)]
    return [row for name, check, number_type in checks for row in attempt(name, check, device, number_type)]


def attempt(quantity: str, check: Callable[[str, str], list[Row]], device: str, dtype: str) -> list[Row]:
    """Return the rows of a check; if it raises, one row out of tolerance, so that the other checks still run."""
    try:
        return check(device, dtype)
    except Exception as error:  # devices have no common type for their errors
        return [Row(f"{quantity}, {dtype}", math.inf, 0.0, f"{type(error).__name__}: {first_line(error)}")]


def augmentation_rows(device: str, dtype: str, *, compiled: bool = False) -> list[Row]:
    """Compare augmentation of whole batches on the device with that of single images in float64 on the CPU."""
    augment = SimCLRAugment(
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        jitter_probability=1.0,
        grayscale_probability=0.2,
        blur_probability=0.5,
        blur_sigma=(0.1, 2.0),
        flip_probability=0.5,
    )
    rng = np.random.default_rng(0)
    plan = np.stack([augment.draw(rng) for _ in range(AUGMENTED)])
    plan[:, 4] = np.arange(AUGMENTED) % len(ORDERS)
    plan[::8, :5] = (1, 1, 1, 0, 0)  # every eighth image without colour jitter
    images = torch.rand(AUGMENTED, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with precision(device, dtype):
        computed = as_array(augment_batch(images.to(device, DTYPES[dtype]), plan, compiled=compiled))
    exact = np.stack([as_array(augment_image(image.double(), row)) for image, row in zip(images, plan, strict=True)])
    part = Part("largest, of 0..1", float(np.abs(computed - exact).max()), PIXEL_TOLERANCES[dtype])
    name = "compiled augmentation" if compiled else "augmentation in batches"
    return [worst(f"{name}, {dtype}: pixels", [part])]


def tiled_loss_rows(device: str, dtype: str) -> list[Row]:
    """Compare both losses in tiles on the device with the same losses without tiles, in float64 on the CPU."""
    torch.manual_seed(4)
    first, noise = torch.randn(2, PAIRS, WIDTH)
    pairs = first, first + noise  # similar, so that many samples but not all find their partner
    tolerances = TOLERANCES[dtype]
    rows = []
    for label, loss in (("InfoNCE", clip_loss), ("NT-Xent", simclr_loss)):
        computed = loss_passes(loss, pairs, TILE, device, dtype)
        exact = loss_passes(loss, pairs, None, "cpu", "float64")
        allowed = {"loss": tolerances.loss, "accuracy": tolerances.accuracy(PAIRS) / 100}
        parts = [
            Part(name, relative(computed[name], array), allowed.get(name, tolerances.gradient))
            for name, array in exact.items()
        ]
        rows.append(worst(f"{label} in tiles, {dtype}", parts))
    return rows


def clip_loss(first: Features, second: Features, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Compute InfoNCE with a trained temperature."""
    return info_nce(first, second, scale.exp())


def simclr_loss(first: Features, second: Features, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Compute NT-Xent at SLIP's temperature."""
    return nt_xent(first, second, 0.1)


def loss_passes(
    loss: Callable[[Features, Features, Tensor], tuple[Tensor, Tensor]],
    pairs: tuple[Tensor, Tensor],
    tile: int | None,
    device: str,
    dtype: str,
) -> Arrays:
    """Return a loss, its accuracy and gradients, computed in tiles of this size, or without tiles if it is None."""
    leaves = [nn.Parameter(x.to(device, DTYPES[dtype])) for x in (*pairs, torch.tensor(math.log(1 / 0.07)))]
    first, second = (Features(x, gather_with_grad=True) for x in leaves[:2])
    with in_tiles(tile), precision(device, dtype):
        value, accuracy = loss(first, second, leaves[2])
        value.backward()
    computed = {"loss": value, "accuracy": accuracy}
    named = zip(("first", "second", "scale"), leaves, strict=True)
    computed |= {f"gradient of {name}": leaf.grad for name, leaf in named if leaf.grad is not None}
    return {name: as_array(x) for name, x in computed.items()}
