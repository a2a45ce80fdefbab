"""The one deterministic transform of evaluation: image to tensor."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


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
        """The constructor's arguments, plain, from which a checkpoint rebuilds the transform."""
        return {"size": self.size, "mean": list(self.mean), "std": list(self.std)}

    def undo(self, images: Float[Tensor, "images 3 height width"]) -> UInt8[np.ndarray, "images 3 height width"]:
        """Pixels of normalised images, for reports."""
        return (images * self._std + self._mean).mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
