"""Image processors of transformers: `preprocessor_config.json` or `processor_config.json` as a transform of ours."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openslip.data.image.eval_transform import EvalTransform
from openslip.distributed import notice_once
from openslip.errors import UserError
from openslip.inference.layouts.folder import file_in, read_json
from openslip.inference.layouts.transforms import OPENAI

# Settings of transformers' classes that a file may leave out.
PREPROCESSING: dict[str, dict[str, Any]] = {
    "CLIP": {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, "resample": 3}
    | {"image_mean": OPENAI["mean"], "image_std": OPENAI["std"]},
    "Siglip": {"size": {"height": 224, "width": 224}, "do_center_crop": False, "resample": 3}
    | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "ViT": {"size": {"height": 224, "width": 224}, "do_center_crop": False, "resample": 2}
    | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}
PROCESSOR = re.compile(r"(CLIP|Siglip|ViT)(ImageProcessor|FeatureExtractor)(Fast|Pil)?")
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}


def transform_in(folder: Path, image_size: int, family: str) -> EvalTransform:
    """Return the transform that `preprocessor_config.json` or `processor_config.json` describes.

    It equals transformers' image processors with the backend Pillow.

    Args:
        folder: the folder.
        image_size: side of the images that the model takes.
        family: `CLIP` or `Siglip`: the processor whose defaults apply if there is no such file.

    Raises:
        UserError: the processor is not one of those that we have, or does not give square images of this size.
    """
    if (path := file_in(folder, "preprocessor_config.json")) is not None:
        settings = read_json(path)
    elif (path := file_in(folder, "processor_config.json")) is not None:
        settings = read_json(path).get("image_processor") or {}
    else:
        path, settings = folder / "preprocessor_config.json", default_size(family, image_size)
        notice_once(f"{folder} has no preprocessor_config.json: images are prepared as {family}ImageProcessor does")
    try:
        return transform_of(settings, image_size, family)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, UserError) as error:
        raise UserError(f"{path}: {error}; load it with hf:{folder} instead") from error


def default_size(family: str, image_size: int) -> dict[str, Any]:
    """Return the processor settings that follow from the model's image size."""
    if family == "CLIP":
        return {"size": {"shortest_edge": image_size}, "crop_size": image_size}
    return {"size": {"height": image_size, "width": image_size}}


def transform_of(settings: Mapping[str, Any], image_size: int, family: str) -> EvalTransform:
    """Return the transform that the settings of an image processor describe."""
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or f"{family}ImageProcessor"
    if (match := PROCESSOR.fullmatch(kind)) is None:
        raise UserError(f"image processor {kind[:80]} is not one that OpenSLIP reads (CLIP, Siglip and ViT)")
    settings = PREPROCESSING[match[1]] | {key: value for key, value in settings.items() if value is not None}
    if not (
        settings.get("do_resize", True) and settings.get("do_rescale", True) and settings.get("do_normalize", True)
    ):
        raise UserError("do_resize, do_rescale or do_normalize is false; expected all three")
    if not math.isclose(settings.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise UserError(f"rescale_factor is {settings['rescale_factor']}; expected 1/255")
    if settings["resample"] not in INTERPOLATIONS:
        raise UserError(f"resample is {settings['resample']}; expected 2 (bilinear) or 3 (bicubic)")
    size, crop = settings["size"], settings["crop_size"] if settings["do_center_crop"] else None
    if isinstance(size, int):
        size = {"shortest_edge": size} if crop else {"height": size, "width": size}
    if isinstance(crop, Mapping):
        crop = crop["height"] if crop["height"] == crop["width"] else crop
    if set(size) == {"shortest_edge"} and crop == image_size <= size["shortest_edge"]:
        larger = size["shortest_edge"] if size["shortest_edge"] > image_size else None
        resize: dict[str, Any] = {"resize": "shortest", "resize_to": larger}
    elif set(size) == {"height", "width"} and size["height"] == size["width"] == image_size == (crop or image_size):
        resize = {"resize": "squash"}
    else:
        raise UserError(f"size {size} with crop {crop} does not give the model's images of {image_size} pixels")
    mean, std = ([float(value) for value in settings[key]] for key in ("image_mean", "image_std"))
    if not (len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0):
        raise UserError("image_mean and image_std: expected three finite numbers each")
    interpolation = INTERPOLATIONS[settings["resample"]]
    return EvalTransform(size=image_size, mean=mean, std=std, interpolation=interpolation, crop="floor", **resize)
