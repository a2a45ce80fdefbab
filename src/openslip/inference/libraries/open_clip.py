"""`open_clip:MODEL/PRETRAINED`: a model of open_clip, with its own tokenizer and transform.

`MODEL` is a name of `open_clip.list_models()`. `PRETRAINED` is one of its tags, or the path of a file with weights.
`open_clip:local-dir:FOLDER` and `open_clip:hf-hub:ORG/NAME` are read as open_clip itself reads them.
"""

import warnings
from difflib import get_close_matches
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openslip.errors import MissingPackage, UserError, first_line
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices
from openslip.inference.wrapped import WrappedModel, WrappedTokenizer, WrappedTransform, refuse_choices, whole_rows

SCHEMES = ("local-dir:", "hf-hub:")


class OpenClipModel(WrappedModel):
    """A model of open_clip behind the methods that a bundle calls."""

    def encode_image(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embed"]:
        """Encode images, not normalised."""
        return self.model.encode_image(images)

    def encode_text(
        self, ids: Int[Tensor, "batch length"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch embed"]:
        """Encode captions, not normalised; the model finds the pooled position itself."""
        return self.model.encode_text(ids)


def read(address: str, choices: Choices) -> Bundle:
    """Load a model with open_clip, which downloads its weights if they are not in its cache.

    Raises:
        MissingPackage: open_clip is not installed.
        UserError: there is no such model or tag, its weights cannot be loaded, or its activation is not the one that
            the weights were trained with.
    """
    try:
        import open_clip  # noqa: PLC0415  # slow
    except ImportError as error:
        raise MissingPackage("open_clip: needs open_clip_torch; pip install open_clip_torch") from error
    origin = f"open_clip:{address}"
    refuse_choices(choices, origin)
    if address.startswith(SCHEMES):
        name, pretrained = address, None
    else:
        name, _, pretrained = address.partition("/")
        known = open_clip.list_models()
        if name not in known:
            near = ", ".join(get_close_matches(name, known, 5, 0.4))
            raise UserError(f"{origin}: open_clip has no model {name}; similar names: {near}")
        if not pretrained:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
            raise UserError(f"{origin}: expected open_clip:{name}/PRETRAINED, a file with weights or a tag: {tags}")
    try:
        with warnings.catch_warnings():
            # open_clip only warns when a model's activation is not that of its weights, which moves every feature.
            warnings.filterwarnings("error", message="QuickGELU mismatch")
            loaded: Any = open_clip.create_model_from_pretrained(name, pretrained)
            tokenizer: Any = open_clip.get_tokenizer(name)
    except UserWarning as error:
        raise UserError(f"{origin}: {first_line(error)} Take the model {name}-quickgelu, or the one without") from error
    except Exception as error:  # open_clip and the hub have no common type for their errors
        raise UserError(f"{origin}: open_clip cannot load it ({first_line(error)[:300]})") from error
    model, apply = loaded
    visual = model.visual
    size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
    settings = visual.preprocess_cfg
    return Bundle(
        OpenClipModel(model),
        WrappedTokenizer(
            lambda texts: whole_rows(tokenizer(texts)),
            context_length=int(model.context_length),
            vocab_size=int(getattr(model, "vocab_size", 0)),
            # open_clip's own tokenizer decodes; its wrapper of a tokenizer of transformers does not.
            invert=getattr(tokenizer, "decode", None) or tokenizer.tokenizer.decode,
            origin=origin,
        ),
        WrappedTransform(apply, size=size, mean=list(settings["mean"]), std=list(settings["std"]), origin=origin),
        {
            "library": "open_clip",
            "version": open_clip.__version__,
            "model": name,
            "pretrained": pretrained,
            "processor": dict(settings),
        },
        torch.device("cpu"),
    )
