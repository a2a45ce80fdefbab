"""OpenSLIP's own form: `model.safetensors`, whose metadata describes model, tokenizer and transform."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openslip.export.card_facts import public
from openslip.export.packages import Packages
from openslip.export.read import Read
from openslip.inference.bundle import Bundle
from openslip.inference.formats import openslip
from openslip.inference.load import load
from openslip.models.text_encoder import TextEncoder

NEEDS = Packages()


def write(bundle: Bundle, folder: Path) -> None:
    """Write the file that `openslip strip` writes, whose provenance names no folder of this machine."""
    openslip.write(replace(bundle, provenance=public(bundle.provenance)), folder / openslip.IN_FOLDER)


def read(folder: Path, allow: Collection[str] = ()) -> Read:
    """Load the folder with OpenSLIP itself, which is this form's library."""
    bundle = load(folder, allow=allow)
    bundle.model.requires_grad_(False)
    tokenizer = bundle.tokenizer

    def pixels(images: list[Image.Image]) -> np.ndarray:
        return torch.stack([bundle.transform(image) for image in images]).numpy()

    def image_features(pixels: np.ndarray) -> np.ndarray:
        return bundle.model.encode_image(torch.from_numpy(pixels)).numpy()

    def ids(texts: list[str]) -> np.ndarray:
        return bundle.need_tokenizer().encode(texts)[0].numpy()

    def text_features(rows: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(rows)
        return bundle.model.encode_text(given, bundle.need_tokenizer().lengths(given)).numpy()

    scale, bias = (getattr(bundle.model, name, None) for name in ("logit_scale", "logit_bias"))
    has_images = not isinstance(bundle.model, TextEncoder)
    return Read(
        pixels=pixels if has_images else None,
        image_features=image_features if has_images else None,
        ids=None if tokenizer is None else ids,
        text_features=None if tokenizer is None else text_features,
        logit_scale=None if scale is None else float(scale.exp()),
        logit_bias=None if bias is None else float(bias),
        double=bundle.model.double,
    )
