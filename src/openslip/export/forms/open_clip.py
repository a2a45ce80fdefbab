"""Folders of open_clip 3.3: `open_clip_config.json` and `open_clip_model.safetensors`, read as `local-dir:FOLDER`.

Every setting is written, also where it is open_clip's default, because the defaults change between its versions.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.export.open_clip_image import image_part
from openslip.export.open_clip_text import text_part
from openslip.export.packages import Packages
from openslip.export.read import Read
from openslip.export.tokenizer_files import write_tokenizer
from openslip.export.towers import dual_encoder
from openslip.inference.bundle import Bundle
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.tokenizer import Tokenizer

NEEDS = Packages(("open_clip",))
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
ABSENT = "not in this folder"  # instead of a tokenizer's name


def write(bundle: Bundle, folder: Path) -> None:
    """Write a model with two towers.

    Raises:
        UserError: open_clip cannot express the model. The error names the forms that can.
    """
    model = dual_encoder(bundle, "open_clip")
    text = text_part(model, bundle.need_tokenizer())
    preprocessing = preprocess(bundle.transform)
    image = image_part(model, bundle.transform.size, text.activation)
    is_custom = not image.is_native or text.has_class_token
    prefix = "text." if is_custom else ""
    weights = image.weights | {f"{prefix}{name}": weight for name, weight in text.weights.items()}
    weights["logit_scale"] = model.logit_scale
    settings: dict[str, Any] = {
        "embed_dim": model.image_tower.width if model.image_projection is None else model.image_projection.shape[1],
        "quick_gelu": text.activation == "quick_gelu",
        "custom_text": is_custom,
        "vision_cfg": image.config,
        "text_cfg": text.config | tokenizer_settings(bundle.need_tokenizer(), folder),
    }
    if model.logit_bias is not None:
        weights["logit_bias"] = model.logit_bias
        settings["init_logit_bias"] = float(model.logit_bias.detach())
    save_file(stored(weights), folder / WEIGHTS, {"format": "pt"})
    config = {"model_cfg": settings, "preprocess_cfg": preprocessing}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def tokenizer_settings(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Write the tokenizer's files if open_clip does not have its rules, and return the settings that name it.

    Others need transformers.
    """
    if isinstance(tokenizer, BareIds):
        return {"hf_tokenizer_name": ABSENT}  # without the name, open_clip would take CLIP's vocabulary
    if has_own_rules(tokenizer):
        return {"hf_tokenizer_name": None}
    write_tokenizer(tokenizer, folder, "open_clip")
    # open_clip repairs texts and decodes HTML entities before the tokenizer does all other cleaning.
    return {"hf_tokenizer_name": "in this folder", "tokenizer_kwargs": {"clean": "whitespace"}}


def has_own_rules(tokenizer: Tokenizer) -> bool:
    """Whether open_clip's own tokenizer makes the same ids.

    It keeps the end of a truncated text, takes a literal `<end_of_text>` for the end, and has no mask token.
    """
    return (
        isinstance(tokenizer, ClipBpe)
        and tokenizer.truncation == "keep_end"
        and tokenizer.special_text == "open_clip"
        and not tokenizer.mask_token
    )


def check_needs(bundle: Bundle) -> Packages:
    """Return transformers if open_clip reads the model's tokenizer with it."""
    tokenizer = bundle.tokenizer
    is_written = tokenizer is not None and not isinstance(tokenizer, BareIds) and not has_own_rules(tokenizer)
    return Packages(("transformers",), "hf") if is_written else Packages()


def transform(bundle: Bundle) -> EvalTransform:
    """Return the transform that this form defines, which rounds half a pixel in the position of the crop to even."""
    settings: dict[str, Any] = bundle.transform.settings() | {"crop": "round"}
    return EvalTransform(**settings)


def preprocess(given: EvalTransform) -> dict[str, Any]:
    """Return `preprocess_cfg`; the size is that of the model.

    Raises:
        UserError: images are resized to another size than that of the crop.
    """
    if given.resize_to is not None:
        raise UserError(
            f"--to open_clip: it crops no margin, and this model's images are resized to {given.resize_to} and cropped "
            f"to {given.size}; use --to huggingface, --to timm or --to onnx"
        )
    return {
        "mode": "RGB",
        "mean": list(given.mean),
        "std": list(given.std),
        "interpolation": given.interpolation,
        "resize_mode": given.resize,
        "fill_color": 0,
    }


def stored(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as a safetensors file takes them: contiguous float32 tensors without shared memory."""
    return {
        name: weight.detach().to(torch.float32 if weight.is_floating_point() else weight.dtype).clone().contiguous()
        for name, weight in weights.items()
    }


def read(folder: Path, allow: Collection[str] = ()) -> Read:
    """Load the folder with open_clip."""
    import open_clip

    loaded: Any = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model, transform = loaded
    model.eval()
    stated = json.loads((folder / CONFIG).read_text("utf-8"))["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    tokenizer: Any = None if stated == ABSENT else open_clip.get_tokenizer(f"local-dir:{folder}")

    def pixels(images: list[Image.Image]) -> np.ndarray:
        return torch.stack([transform(image) for image in images]).numpy()

    def image_features(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.encode_image(torch.from_numpy(pixels)).numpy()

    def ids(texts: list[str]) -> np.ndarray:
        return tokenizer(texts).numpy()

    def text_features(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model.encode_text(torch.from_numpy(rows)).numpy()

    return Read(
        pixels=pixels,
        image_features=image_features,
        ids=None if tokenizer is None else ids,
        text_features=text_features,
        logit_scale=float(model.logit_scale.detach().exp()),
        logit_bias=None if model.logit_bias is None else float(model.logit_bias.detach()),
        double=model.double,
    )
