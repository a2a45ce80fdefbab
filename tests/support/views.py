"""Small views, and what they make, as tests look at it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from openslip.data.captions.choice import Caption
from openslip.data.image.augment import SimCLRAugment
from openslip.data.image.crop import RandomResizedCrop
from openslip.data.image.decode import PillowDecoder
from openslip.data.view import DecodedImage, DecodedSample, View, key
from openslip.text.clip_bpe import ClipBpe

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def crop_view(size: int, scale: Sequence[float], augment: SimCLRAugment | None = None) -> RandomResizedCrop:
    return RandomResizedCrop(size=size, scale=scale, augment=augment, mean=MEAN, std=STD)


def caption_view() -> Caption:
    return Caption(tokenizer=ClipBpe(context_length=77, truncation="keep_end", special_text="plain"))


def sample_of(image: Image.Image, captions: tuple[str, ...] = ()) -> DecodedSample:
    return DecodedSample(0, "sample", DecodedImage(image, PillowDecoder()), captions, None)


def drawn(view: View, image: Image.Image, rng: np.random.Generator) -> dict[str, Any]:
    return view.draw(sample_of(image), rng)


def flattened(batch: dict[str, Any]) -> dict[str, Any]:
    """A worker's batch with its views' columns under the keys that the objective would see."""
    flat: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, dict):
            flat |= {key(name, suffix): column for suffix, column in value.items()}
        else:
            flat[name] = value
    return flat
