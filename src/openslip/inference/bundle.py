"""Contract: a bundle is a model with all that belongs to it, as every evaluation, export and classifier takes it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer

BATCH_SIZE = 64

ImageLike = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Bundle:
    """A model, its tokenizer and its transform.

    Attributes:
        model: has `encode_image(images)` and, with a tokenizer, `encode_text(ids, lengths)`.
        tokenizer: as in training; None for a model without text.
        transform: image to model input, as in evaluation.
        architecture: the plain fields from which the model was built.
        device: where the model lies.
    """

    model: Any
    tokenizer: Tokenizer | None
    transform: EvalTransform
    architecture: dict[str, Any]
    device: torch.device

    def encode_image(
        self, images: Float[Tensor, "images 3 height width"] | Sequence[ImageLike]
    ) -> Float[Tensor, "images embed"]:
        """Unit-length float32 features of images, given as transformed tensors, paths, bytes or PIL images."""
        if isinstance(images, str | bytes | Path):
            raise UserError(f"expected a list of images, got one {type(images).__name__}: write [image]")
        features = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            if not isinstance(batch, Tensor):
                batch = torch.stack([to_input(self.transform, image) for image in batch])
            with evaluating(self.model, self.device):
                features.append(F.normalize(self.model.encode_image(batch.to(self.device)), dim=-1))
        return torch.cat(features)

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "texts embed"]:
        """Unit-length float32 features of texts, in their order.

        Texts are encoded in the order of their lengths and cut to the longest of their batch, so that little padding
        is multiplied.

        Raises:
            UserError: the model has no text tower, or one string was given in place of a list.
        """
        if isinstance(texts, str):
            raise UserError(f"expected a list of texts, got the string {texts[:40]!r}: write [{texts[:40]!r}]")
        ids, lengths = self.need_tokenizer().encode(texts)
        order = lengths.argsort(stable=True)
        features = []
        for rows in order.split(BATCH_SIZE):
            trimmed = ids[rows, : int(lengths[rows].max())]
            with evaluating(self.model, self.device):
                features.append(F.normalize(self.model.encode_text(trimmed.to(self.device), lengths[rows]), dim=-1))
        return torch.cat(features)[order.argsort().to(self.device)]

    def similarity(
        self, images: Float[Tensor, "images 3 height width"] | Sequence[ImageLike], texts: Sequence[str]
    ) -> Float[Tensor, "images texts"]:
        """Cosines between images and texts, from -1 to 1."""
        return self.encode_image(images) @ self.encode_text(texts).T

    def reading(self, *, transparency: str | None = None, exif: str | None = None) -> "Bundle":
        """The same model with another treatment of images, as in `EvalTransform`; None leaves the checkpoint's."""
        settings = self.transform.settings()
        settings |= {key: value for key, value in (("transparency", transparency), ("exif", exif)) if value is not None}
        return replace(self, transform=EvalTransform(**settings))

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer, or an error where the model has no text tower."""
        if self.tokenizer is None:
            raise UserError(
                f"texts need a text tower and a tokenizer, and {type(self.model).__name__} has neither: take a CLIP or "
                "SLIP model, or evaluate image features with k-NN"
            )
        return self.tokenizer


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, no gradients, full float32 (no autocast, no TF32); all is restored, random state too."""
    modes = [(module, module.training) for module in model.modules()]
    matmul_precision, allow_tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    model.eval()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            yield
    finally:
        if device.type == "cuda":
            torch.set_float32_matmul_precision(matmul_precision)
            torch.backends.cudnn.allow_tf32 = allow_tf32
        for module, training in modes:
            module.training = training


def to_input(transform: EvalTransform, image: ImageLike) -> Float[Tensor, "3 size size"]:
    """The model's input of a path, a file's bytes or a PIL image."""
    if isinstance(image, Image.Image):
        try:
            return transform(image)
        except UserError as error:
            raise UserError(f"image: {error}") from error
    if isinstance(image, bytes):
        return transform.read(image, "image")
    if not Path(image).is_file():
        raise UserError(f"image {image}: no such file")
    return transform.read(image, str(image))
