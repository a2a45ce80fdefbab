"""The images and captions on which an export is checked."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# Mode, width and height: odd sizes, both orientations, and sizes whose centre crop begins at half a pixel. Only opaque
# images, because most libraries drop the transparency.
IMAGES = [
    ("RGB", 224, 224),
    ("RGB", 97, 131),
    ("RGB", 203, 98),
    ("L", 65, 81),
    ("RGBA", 75, 50),
    ("RGB", 31, 240),
    ("RGB", 517, 389),
    ("RGB", 60, 61),
]
CAPTIONS = [
    "a photo of a cat",
    "A Photo of TWO dogs, it's 3.50 for 2 (50% off)!",
    "  white   space\tand\na new line ",
    "the quick brown fox jumps over the lazy dog " * 20,
    "na\u00efve caf\u00e9, d\u00e9j\u00e0 vu, \u041f\u0440\u0438\u0432\u0435\u0442, \u6771\u4eac",
    "\U0001f600 smile, \U0001f469\u200d\U0001f467 family",
    ".",
    "",
]
# Texts that name an end token, whose ids are compared. What follows an end has no meaning, so features are not.
ENDS = ["a <|endoftext|> b", "a <end_of_text> b"]


def draw_images() -> list[Image.Image]:
    """Draw the images: coarse coloured squares with noise, and the last one grey with a faint noise."""
    rng = np.random.default_rng(0)
    images = []
    for number, (mode, width, height) in enumerate(IMAGES):
        coarse = rng.integers(0, 256, (height // 13 + 1, width // 13 + 1, 3)).repeat(13, 0).repeat(13, 1)
        noise = rng.integers(-20, 21, (height, width, 3))
        pixels = coarse[:height, :width] + noise if number < len(IMAGES) - 1 else 128 + noise // 10
        images.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode))
    return images


def to_arrays(images: list[Image.Image]) -> dict[str, UInt8[np.ndarray, "..."]]:
    """Return the pixels of images by names that keep their order."""
    return {f"image_{number:03}": np.asarray(image) for number, image in enumerate(images)}


def from_arrays(arrays: dict[str, np.ndarray]) -> list[Image.Image]:
    """Return the images that `to_arrays` has named; Pillow derives the mode from the number of channels."""
    return [Image.fromarray(arrays[name]) for name in sorted(arrays) if name.startswith("image_0")]
