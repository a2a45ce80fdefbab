"""Reads LaCLIP's models trained on CC3M, CC12M and RedCaps (LijieFan/LaCLIP, models.py).

LaCLIP's models trained on LAION have open_clip's format.

The names are those of facebookresearch/SLIP. The image tower also normalises queries and keys
per head, so the shape of this norm shows the number of heads.
"""

from pathlib import Path

import torch

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.architecture import build_limited
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices, agree
from openslip.inference.files import peek
from openslip.inference.formats import slip
from openslip.inference.layouts import openai, transforms
from openslip.inference.layouts.keys import fit, rename, shape


def detect(path: Path) -> bool:
    """Tell whether the file has SLIP's names of weights and, in addition, norms of queries."""
    return {"visual.cls_token", slip.QUERY_NORM} <= slip.weight_names(path)


def read(path: Path, choices: Choices) -> Bundle:
    """Read a model of LaCLIP with its tokenizer and transform.

    Args:
        path: the checkpoint file.
        choices: number of heads of the text tower, if they are not 64 wide.

    Raises:
        UserError: weights are missing, unexpected, or of other shapes.
    """
    weights = slip.state_dict(peek(path))
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    width = shape(weights, "visual.cls_token", ndim=3)[-1]
    (head_width,) = shape(weights, slip.QUERY_NORM, ndim=1)
    if head_width < 1 or width % head_width:
        raise UserError(f"checkpoint {path}: {slip.QUERY_NORM} has {head_width} channels, which do not divide {width}")
    choices.check_activation("quick_gelu")  # the text tower's; the image tower is timm's, with gelu
    image_heads = agree("image_heads", width // head_width, choices.image_heads)
    architecture = slip.read_architecture(shapes, image_heads=image_heads, text_heads=choices.text_heads)
    architecture["image_tower"]["arguments"]["qk_norm"] = True
    state = {name.removeprefix("model."): weight for name, weight in rename(weights, slip.TO_OURS).items()}
    model = build_limited(state, architecture)
    fit(model, state, path)
    size = architecture["image_tower"]["image_size"]
    transform = EvalTransform(size=size, **transforms.IMAGENET, **transforms.AS_PUBLISHED)
    tokenizer = openai.tokenizer(architecture["text_tower"])
    return Bundle(model, tokenizer, transform, architecture, torch.device("cpu"))
