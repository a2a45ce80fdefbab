"""Another library's model, image transform and tokenizer as parts of a bundle; they cannot be stored in our files."""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from openslip.data.image.eval_transform import EvalTransform
from openslip.data.image.rgb import ToRgb
from openslip.errors import UserError
from openslip.inference.choices import Choices
from openslip.text.tokenizer import Tokenizer

_numbers = count()


class AsStored(ToRgb):
    """Passes images of any mode to the library unchanged, unless the user chose `transparency` or `exif`."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Convert the image to RGB if the user chose `transparency` or `exif`; otherwise return it unchanged."""
        return super().__call__(image) if self.settings() else image


class WrappedModel(nn.Module):
    """A model that another library computes; its temperature and bias are scalars, though libraries store shape [1].

    Args:
        model: the library's model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        return self.model.logit_scale.reshape(())

    @property
    def logit_bias(self) -> Float[Tensor, ""] | None:
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.reshape(())


class WrappedTransform(EvalTransform):
    """An image transform that another library computes, from images of any mode.

    Args:
        apply: the transform, from an image to a tensor [3, size, size].
        size: side of the square that the model takes, in pixels.
        mean: mean of the normalisation, per channel, for reports.
        std: standard deviation of the normalisation, per channel, for reports.
        origin: address of the model, for errors.
    """

    def __init__(
        self, apply: Callable[[Image.Image], Tensor], *, size: int, mean: list[float], std: list[float], origin: str
    ) -> None:
        super().__init__(size=size, mean=mean, std=std)
        self.to_rgb = AsStored()
        self.apply = apply
        self.origin = origin

    def _resized(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        return self.apply(image)

    def settings(self) -> NoReturn:
        refuse_storing(self.origin)


class WrappedTokenizer(Tokenizer):
    """A tokenizer that another library computes.

    Args:
        apply: the tokenizer, from texts to ids and lengths.
        context_length: maximum number of ids per row.
        vocab_size: number of different ids.
        invert: the decoder, from ids to a text.
        origin: address of the model, for errors.

    Attributes:
        number: unique among the tokenizers of this process, because it has no settings to compare.
    """

    def __init__(
        self,
        apply: Callable[[list[str]], tuple[Tensor, Tensor]],
        *,
        context_length: int,
        vocab_size: int,
        invert: Callable[[list[int]], str],
        origin: str,
    ) -> None:
        self.apply = apply
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.special_ids = {}
        self.number = next(_numbers)
        self.invert = invert
        self.origin = origin

    def encode(self, texts: Sequence[str], /) -> tuple[Int[Tensor, "texts length"], Int[Tensor, " texts"]]:
        return self.apply(list(texts))

    def decode(self, ids: Sequence[int], /) -> str:
        return self.invert([int(i) for i in ids])

    def settings(self) -> dict[str, Any]:
        refuse_storing(self.origin)


def whole_rows(ids: Int[Tensor, "texts length"]) -> tuple[Int[Tensor, "texts length"], Int[Tensor, " texts"]]:
    """Return ids with the length of their rows, for a model that finds the pooled position itself."""
    return ids, torch.full((len(ids),), ids.shape[1])


def refuse_storing(origin: str) -> NoReturn:
    """Raise the error of a model that cannot be stored."""
    raise UserError(f"{origin} runs in its own library and cannot be stored in a checkpoint of OpenSLIP")


def refuse_choices(choices: Choices, origin: str) -> None:
    """Raise if the user chose what the library itself decides.

    Raises:
        UserError: an activation or a number of heads was chosen.
    """
    for name in ("activation", "image_heads", "text_heads"):
        if (value := getattr(choices, name)) is not None:
            raise UserError(f"{name}={value}: {origin} says it itself; leave {name} out")
