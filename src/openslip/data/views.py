"""Pictures to tensors: the random crops of training, and the one deterministic transform of evaluation."""

import io
import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor

from openslip.data.augment import Augment
from openslip.errors import UserError

MAX_PIXELS = 50_000_000
# Named, because Pillow's full list holds decoders that start other programs (EPS) or read other files.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")


def open_image(source: bytes | str | Path, name: str) -> Image.Image:
    """Decode one picture to RGB; transparency is dropped and EXIF rotation ignored, as in the published loaders.

    `name` is what an error calls the picture. Raises UserError when it has more than 50 million pixels (known from its
    header, before anything is decoded) or cannot be decoded whole.
    """
    try:
        # Bytes in any case: of a file with several frames Pillow would keep the descriptor.
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height <= MAX_PIXELS:
            image.load()
            return image if image.mode == "RGB" else _to_rgb(image)
        size = f"{image.width} x {image.height}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        size = "too many pixels"
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files, SyntaxError among them
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"not a picture in one of the formats {', '.join(FORMATS)}"
        raise UserError(f"{name}: cannot be decoded ({reason}); replace or remove it") from error
    raise UserError(f"{name}: {size}, more than {MAX_PIXELS:,} pixels are refused; scale it down first")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip all above 255 to white
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way
    return image.convert("RGB")


class View:
    """One random resized crop of a decoded picture, and the parameters of the augmentation that follows on the device.

    The crop is torchvision's RandomResizedCrop on PIL pictures: bilinear with antialiasing, ratio 3/4 to 4/3.

    Args:
        size: side of the square crop, in pixels.
        scale: least and most share of the picture's area, (0.08, 1) in SimCLR, (0.5, 1) for SLIP's image view.
        augment: draws its parameters here and is applied to the whole batch by the DataModule; None: the crop alone.
    """

    def __init__(self, *, size: int, scale: tuple[float, float] | list[float], augment: Augment | None) -> None:
        low, high = scale
        if not 0 < low <= high:
            raise UserError(f"view scale={list(scale)}: expected [low, high] with 0 < low <= high, such as [0.08, 1]")
        self.size = size
        self.scale = (float(low), float(high))
        self.augment = augment

    def __call__(
        self, image: Image.Image, rng: np.random.Generator
    ) -> tuple[UInt8[np.ndarray, "3 size size"], Float32[np.ndarray, " parameters"] | None]:
        box = random_box(image.width, image.height, self.scale, rng)
        # Not resize(box=...): its filter reaches beyond the box, torchvision's crop does not.
        crop = image.crop(box).resize((self.size, self.size), Image.Resampling.BILINEAR)
        pixels = np.frombuffer(crop.tobytes(), np.uint8).reshape(self.size, self.size, 3).transpose(2, 0, 1)
        return pixels, None if self.augment is None else self.augment.draw(rng)


_LOG_RATIO = math.log(4 / 3)
_TRIES = 10


def random_box(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) with the distribution of torchvision's RandomResizedCrop.get_params.

    Always takes the same number of draws, so that what is drawn next does not depend on the picture's shape.
    """
    draws = rng.random(2 * _TRIES + 2).tolist()
    low, high = scale
    for attempt in range(_TRIES):
        area = width * height * (low + (high - low) * draws[2 * attempt])
        ratio = math.exp((2 * draws[2 * attempt + 1] - 1) * _LOG_RATIO)
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(draws[-2] * (width - crop_width + 1))
            top = int(draws[-1] * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width = min(width, round(height * 4 / 3))
    crop_height = min(height, round(width * 4 / 3))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


class EvalTransform:
    """Short side to `size` (bilinear, antialiased), centre crop, normalise; equal to torchvision's four transforms."""

    def __init__(self, *, size: int, mean: list[float], std: list[float]) -> None:
        self.size = size
        self.mean = mean
        self.std = std
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        width, height = image.size
        short = min(width, height)
        width, height = int(self.size * width / short), int(self.size * height / short)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float().div_(255).sub_(self._mean).div_(self._std).contiguous()

    def settings(self) -> dict[str, int | list[float]]:
        """The constructor's arguments, plain, for checkpoints."""
        return {"size": self.size, "mean": list(self.mean), "std": list(self.std)}
