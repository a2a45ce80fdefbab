"""`preprocessor_config.json`: our image transform as an image processor of transformers."""

import json
from pathlib import Path
from typing import Any

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.layouts.huggingface_images import INTERPOLATIONS


def defined(transform: EvalTransform) -> EvalTransform:
    """Return the transform that the file of `write_image_processor` defines.

    It is ours, but half a pixel in the position of a centre crop is rounded down: docs/NUMERICS.md#export-crop.
    """
    settings: dict[str, Any] = transform.settings()
    if transform.resize == "shortest":
        settings["crop"] = "floor"
    return EvalTransform(**settings)


def write_image_processor(transform: EvalTransform, folder: Path, form: str) -> None:
    """Write the file. With its backend `pil`, transformers then computes the pixels of `defined(transform)`.

    Args:
        transform: our transform.
        folder: folder to write into.
        form: name of the form, for the error.

    Raises:
        UserError: transformers has no such transform.
    """
    if transform.resize == "longest":
        raise UserError(
            f"--to {form}: transformers has no image processor that resizes the longest side and pads the other; "
            "use --to open_clip"
        )
    squash, size = transform.resize == "squash", transform.size
    content: dict[str, Any] = {
        "image_processor_type": "SiglipImageProcessor" if squash else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size} if squash else {"shortest_edge": transform.resize_to or size},
        "resample": {name: number for number, name in INTERPOLATIONS.items()}[transform.interpolation],
        "do_center_crop": not squash,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
