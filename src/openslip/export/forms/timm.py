"""Folders of timm: `config.json` and `model.safetensors` of the image tower, read as `local-dir:FOLDER`.

The projection into the joint space is written as the model's linear classifier, with zeros for a bias that it does not
have. `timm.create_model("local-dir:FOLDER", pretrained=True)` therefore returns the features that are compared with
texts, and `num_classes=0` returns those of the tower, before the projection. The key `classifier_is_projection` of the
config, which timm ignores, tells our reader so. A model without a projection is written without a classifier.
"""

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.export.networks import differences
from openslip.export.packages import Packages
from openslip.export.read import Read
from openslip.inference.bundle import Bundle
from openslip.inference.formats.timm_image import IS_PROJECTION
from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.models.projected_image_encoder import ProjectedImageEncoder
from openslip.models.timm_tower import TimmTower

NEEDS = Packages(("timm",))
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CROPS = {"shortest": "center", "squash": "squash"}  # timm's names of our ways to resize


def write(bundle: Bundle, folder: Path) -> None:
    """Write the image tower and its projection.

    Raises:
        UserError: timm cannot express the tower. The error names the forms that can.
    """
    tower: Any = getattr(bundle.model, "image_tower", None)
    if not isinstance(tower, TimmTower):
        kind = type(bundle.model).__name__ if tower is None else type(tower).__name__
        raise UserError(f"--to timm: timm has no image tower like {kind}; use --to open_clip or --to onnx")
    described = bundle.architecture["image_tower"]
    weight, bias = projection(bundle.model)
    num_classes = 0 if weight is None else weight.shape[1]
    name, arguments = described["name"], described["arguments"] | {"img_size": bundle.transform.size}
    try:
        built = build(name, arguments, num_classes=0)
    except TypeError:  # a backbone that takes images of any size
        arguments = dict(described["arguments"])
        built = build(name, arguments, num_classes=0)
    if reasons := differences(tower.trunk, built):
        raise UserError(
            f"--to timm: its {name} differs from this tower in {'; '.join(reasons[:2])}; "
            "use --to open_clip, --to huggingface or --to onnx"
        )
    weights = {name: tensor.clone().contiguous() for name, tensor in tower.trunk.state_dict().items()}
    layer = ""
    if weight is not None:
        layer = classifier(build(name, arguments, num_classes=num_classes), weights, tuple(weight.T.shape))
        weights[f"{layer}.weight"] = weight.T.clone().contiguous()
        weights[f"{layer}.bias"] = torch.zeros(num_classes) if bias is None else bias.clone()
    settings = {
        "architecture": name,
        "num_classes": num_classes,
        "num_features": tower.token_width,
        "model_args": arguments,
        IS_PROJECTION: weight is not None,
        "pretrained_cfg": preprocess(bundle.transform)
        | {"fixed_input_size": "img_size" in arguments, "num_classes": num_classes, "classifier": layer or None},
    }
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def projection(model: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Return the projection of images, [width, embed], and its bias.

    Raises:
        UserError: the model is of another class.
    """
    if isinstance(model, DualEncoder):
        weight, bias = model.image_projection, model.image_projection_bias
        return (None if weight is None else weight.detach()), (None if bias is None else bias.detach())
    if isinstance(model, ProjectedImageEncoder):
        return model.image_projection.weight.detach().T, model.image_projection.bias.detach()
    if isinstance(model, ImageEncoder):
        return None, None
    raise UserError(
        f"--to timm: {type(model).__name__} has no image tower that could stand alone; use --to safetensors"
    )


def build(name: str, arguments: dict[str, Any], *, num_classes: int) -> nn.Module:
    """Build a model of timm without weights."""
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, num_classes=num_classes, **arguments)


def classifier(whole: nn.Module, tower: Collection[str], shape: tuple[int, ...]) -> str:
    """Return the name of the linear layer that timm adds to a tower as its classifier.

    Args:
        whole: the model with its classifier.
        tower: names of the tower's weights.
        shape: shape of the projection, [embed, width].

    Raises:
        UserError: the model's classifier is more than a linear layer.
    """
    added = {name: tuple(weight.shape) for name, weight in whole.state_dict().items() if name not in tower}
    layer = next(iter(added), "").removesuffix(".weight")
    if added != {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}:
        raise UserError(
            f"--to timm: {type(whole).__name__} has the classifier {', '.join(added) or 'none'}; expected one linear "
            "layer, for the projection; use --to open_clip or --to onnx"
        )
    return layer


def transform(bundle: Bundle) -> EvalTransform:
    """Return the transform that this form defines, which rounds half a pixel in the position of the crop to even."""
    settings: dict[str, Any] = bundle.transform.settings() | {"crop": "round"}
    return EvalTransform(**settings)


def preprocess(given: EvalTransform) -> dict[str, Any]:
    """Return timm's settings of the images.

    Raises:
        UserError: timm cannot prepare images like this.
    """
    if given.resize not in CROPS:
        raise UserError(
            "--to timm: timm pads images with their mean, and this model's are padded with black; use --to open_clip "
            "or --to onnx"
        )
    size, resized = given.size, given.resize_to or given.size
    share = size / resized
    if math.floor(size / share) != resized:  # timm divides again, and rounds down
        share = size / (resized + 0.5)
    return {
        "input_size": [3, size, size],
        "interpolation": given.interpolation,
        "crop_pct": share,
        "crop_mode": CROPS[given.resize],
        "mean": list(given.mean),
        "std": list(given.std),
    }


def read(folder: Path, allow: Collection[str] = ()) -> Read:
    """Load the folder with timm."""
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_data_config({}, model=model), is_training=False)

    def pixels(images: list[Image.Image]) -> np.ndarray:
        return torch.stack([transform(image.convert("RGB")) for image in images]).numpy()

    def image_features(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(pixels)).numpy()

    return Read(pixels=pixels, image_features=image_features, double=model.double)
