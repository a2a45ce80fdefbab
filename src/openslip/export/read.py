"""What a form's own library computes from an exported folder."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Int64
from PIL import Image


@dataclass(frozen=True)
class Read:
    """An exported model, loaded by the form's own library; None stands for what the form does not have.

    Attributes:
        pixels: prepares images of any mode and size.
        image_features: encodes prepared images; normalised or not.
        ids: tokenizes texts, and pads the rows to one length.
        text_features: encodes rows of ids; normalised or not.
        logit_scale: the factor on cosine similarities, exp(`logit_scale`).
        logit_bias: the bias added to the logits.
        is_unit: whether the form promises features of length 1.
        norm_eps: the epsilons of the norms by tower, `image` and `text`, if the form cannot compute in float64.
        double: makes the model compute in float64, where a wrong setting cannot be mistaken for rounding.
    """

    pixels: Callable[[list[Image.Image]], Float32[np.ndarray, "images 3 height width"]] | None
    image_features: Callable[[Float[np.ndarray, "images 3 height width"]], Float[np.ndarray, "images embed"]] | None
    ids: Callable[[list[str]], Int64[np.ndarray, "texts length"]] | None = None
    text_features: Callable[[Int64[np.ndarray, "texts length"]], Float[np.ndarray, "texts embed"]] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    is_unit: bool = False
    norm_eps: dict[str, list[float]] = field(default_factory=dict)
    double: Callable[[], object] | None = None
