"""Three made-up sets and random CLIP models, for clip_benchmark's evaluation and for ours."""

import copy
import io
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image

from openslip.data.source import Sample, Source

NUM_IMAGES = 120
COARSE = 4  # squares of one colour along each side of an image
CLASSES = {
    "seven": ["red cross", "green ring", "big blue square", "a very long name of a thing", "dot", "line", "arc"],
    "three": ["cat", "dog", "red fox"],
}
TEMPLATES = {"seven": ["{}", "a photo of a {}.", "art of the {}."], "three": ["a photo of a {}."]}
WORDS = ["red", "green", "blue", "a", "the", "ring", "cross", "square", "small", "large", "of", "with", "on"]
SETS = ("seven", "three", "captions")


class MadeUp(Source):
    """Images of coloured squares; two sets have labels, uneven over the classes, and one has 1 to 7 captions an image.

    Args:
        name: one of `SETS`.
        size: side of the images in pixels, a multiple of `COARSE`.
    """

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.classes = CLASSES.get(name)

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int, /) -> Sample:
        rng = np.random.default_rng((SETS.index(self.name), index))
        colours = rng.integers(0, 256, (COARSE, COARSE, 3), dtype=np.uint8)
        pixels = colours.repeat(self.size // COARSE, axis=0).repeat(self.size // COARSE, axis=1)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        captions, label = (), None
        if self.classes:
            label = int(len(self.classes) * rng.random() ** 2)
        else:
            words = (rng.choice(WORDS, rng.integers(2, 9)) for _ in range(int(rng.integers(1, 8))))
            captions = tuple(f"{' '.join(chosen)} {index}" for chosen in words)
        return Sample(key=f"{self.name}{index}", image=stream.getvalue(), captions=captions, label=label)

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {self.size}"


def model_config(size: str) -> dict[str, Any]:
    """Return open_clip's config of ViT-B/32 (`full`), or with two layers per tower and 64 pixels (`small`)."""
    config = copy.deepcopy(open_clip.get_model_config("ViT-B-32-quickgelu"))
    assert config is not None
    if size == "small":
        config["vision_cfg"] |= {"layers": 2, "image_size": 64}
        config["text_cfg"] |= {"layers": 2}
    return config


def random_model(size: str) -> Any:
    """Return a random model of open_clip, the same in every process; features of its images differ visibly."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**model_config(size)).eval()
    with torch.no_grad():
        for key, weight in model.state_dict().items():
            if key.endswith("mlp.c_proj.weight"):
                weight.mul_(4)
    return model
