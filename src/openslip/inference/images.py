"""Convert images of any accepted type (path, URL, bytes, PIL image, array, tensor) to RGB PIL images."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openslip.data.image.decode import AS_USUAL, MAX_PIXELS, open_image
from openslip.data.image.rgb import ToRgb
from openslip.data.remote.address import shown
from openslip.errors import UserError
from openslip.inference.web_image import download, is_url
from openslip.regular_file import regular_file

ImageLike = str | Path | bytes | Image.Image | np.ndarray | Tensor

ARRAY = "an array of an image is uint8 [height, width, 3], RGB"
TENSOR = "a tensor of an image is [3, height, width], RGB, uint8 or floats from 0 to 1"


def is_one_image(images: object) -> bool:
    """Tell whether the value is a single image rather than a list or batch of images."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim == 3 or (images.ndim == 2 and images.dtype != object)
    return isinstance(images, str | bytes | Path | Image.Image)


def listed(images: Iterable[ImageLike] | ImageLike) -> list[ImageLike]:
    """Return one image, or the images of any iterable, as a list; a batched array or tensor is split into its images.

    Raises:
        UserError: the value is neither an image nor iterable.
    """
    if is_one_image(images):
        return [images]  # pyright: ignore[reportReturnType]
    try:
        return list(images)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise UserError(f"expected an image or a list of images, got {type(images).__name__}") from error


def to_image(image: ImageLike, to_rgb: ToRgb = AS_USUAL) -> Image.Image:
    """Convert a path, an http(s) address, encoded image bytes, a PIL image, an array or a tensor to an RGB PIL image.

    Args:
        image: image of any accepted type; `ARRAY` and `TENSOR` state the layouts of arrays and tensors.
        to_rgb: conversion of decoded images to RGB.

    Raises:
        UserError: the file is missing, is not a regular file, cannot be downloaded, or is not an image; or an array or
            tensor has an unexpected shape, dtype or range.
    """
    if isinstance(image, Image.Image):
        return loaded(image, to_rgb)
    if isinstance(image, bytes):
        return open_image(image, "image", to_rgb)
    if isinstance(image, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(check_array(image)))
    if isinstance(image, Tensor):
        pixels = check_tensor(image.detach()).cpu()
        if pixels.is_floating_point():
            pixels = pixels.float().mul(255).round().to(torch.uint8)
        return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    if not isinstance(image, str | Path):
        kinds = "a path, a URL, a file's bytes, a PIL image, an array or a tensor"
        raise UserError(f"{type(image).__name__} is not an image: expected {kinds}")
    if isinstance(image, str) and is_url(image):
        return open_image(download(image), f"image {shown(image)}", to_rgb)
    try:
        is_file = regular_file(image).is_file()
    except OSError as error:  # for example no permission, or a name that is too long
        raise UserError(f"image {image}: cannot be read ({error.strerror})") from error
    if not is_file:
        raise UserError(f"image {image}: no such file")
    return open_image(Path(image), str(image), to_rgb)


def loaded(image: Image.Image, to_rgb: ToRgb) -> Image.Image:
    """Convert a PIL image to RGB; Pillow opens images lazily, so the image is decoded here."""
    name = getattr(image, "filename", "") or "PIL image"
    if 0 in image.size:
        raise UserError(f"{name}: {image.width} x {image.height}, no pixels")
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{name}: {image.width} x {image.height}, more than {MAX_PIXELS:,} pixels are refused")
    try:
        image.load()
        return to_rgb(image)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:  # Pillow's decoders raise a dozen exception types on damaged files
        raise UserError(f"{name}: cannot be decoded ({error}); replace or remove it") from error


def check_array(image: np.ndarray) -> np.ndarray:
    """Return the array, or raise if it is not an image in the layout that `ARRAY` states."""
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype != np.uint8:
        hint = "; transpose it: image.transpose(1, 2, 0)" if image.ndim == 3 and image.shape[0] == 3 else ""
        raise UserError(f"array of shape {list(image.shape)} and type {image.dtype}: {ARRAY}{hint}")
    return image


def check_tensor(image: Tensor) -> Tensor:
    """Return the tensor, or raise if it is not an image in the layout that `TENSOR` states."""
    shape, kind = list(image.shape), str(image.dtype).removeprefix("torch.")
    if len(shape) != 3 or shape[0] != 3 or 0 in shape or not (image.is_floating_point() or image.dtype == torch.uint8):
        hint = "; permute it: image.permute(2, 0, 1)" if len(shape) == 3 and shape[2] == 3 else ""
        raise UserError(f"tensor of shape {shape} and type {kind}: {TENSOR}{hint}")
    # The comparison is written so that NaN is refused too.
    if image.is_floating_point() and not bool((image.min() >= 0) & (image.max() <= 1)):
        raise UserError(
            f"tensor with values from {image.min().item():.4g} to {image.max().item():.4g}: {TENSOR}; normalised "
            "images must be stacked into one tensor for bundle.encode_image"
        )
    return image
