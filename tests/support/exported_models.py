"""Small models to export, whose weights are drawn anew, so that none is zero or one."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
import torch
from model_folders import clip_json

from openslip.data.image.eval_transform import EvalTransform
from openslip.export import forms
from openslip.export.read_back import compute
from openslip.inference.architecture import build_model
from openslip.inference.bundle import Bundle
from openslip.inference.layouts import siglip
from openslip.inference.layouts.transforms import IMAGENET, OPENAI
from openslip.inference.layouts.vision_transformer import vision_transformer
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import TokenizerJson

CONTEXT = 16
TEXT: dict[str, Any] = {
    "_target_": "openslip.models.text_transformer.TextTransformer",
    "vocab_size": 49408,
    "context_length": CONTEXT,
    "width": 24,
    "depth": 2,
    "heads": 2,
}
JOINT: dict[str, Any] = {
    "_target_": "openslip.models.dual_encoder.DualEncoder",
    "text_tower": TEXT,
    "embed_dim": 24,
    "logit_scale_init": 2.6593,
}


def vit(name: str, activation: str, norm_eps: float) -> dict[str, Any]:
    return vision_transformer(
        name,
        image_size=32,
        patch_size=8,
        width=24,
        depth=2,
        heads=3,
        mlp_width=60,
        activation=activation,
        norm_eps=norm_eps,
    )


def timm(name: str, size: int, **arguments: Any) -> dict[str, Any]:
    target = "openslip.models.timm_tower.TimmTower"
    return {"_target_": target, "name": name, "image_size": size, "arguments": arguments}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "clip": JOINT | {"image_tower": vit("vit_base_patch16_clip_224", "quick_gelu", 1e-5)},
    "slip": JOINT
    | {"image_tower": timm("vit_small_patch16_224", 32, patch_size=8, embed_dim=24, depth=2, num_heads=3)},
    "siglip": siglip.architecture(
        vit(siglip.TIMM_NAME, "gelu_tanh", 1e-6),
        TEXT | {"causal": False, "activation": "gelu_tanh", "norm_eps": 1e-6},
        24,
    ),
    "test_vit": JOINT | {"image_tower": timm("test_vit", 160)},
    "resnet": JOINT | {"image_tower": timm("resnet18", 32, channels=[8, 8, 8, 16], layers=[1, 1, 1, 1], stem_width=8)},
    "simclr": {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": timm("test_vit", 160)},
}


def bundle_of(name: str, **changes: Any) -> Bundle:
    """Return a bundle of an architecture.

    Args:
        name: key of ARCHITECTURES.
        changes: `transform` or `tokenizer`, or entries of the architecture.
    """
    given = {key: changes.pop(key) for key in ("transform", "tokenizer") if key in changes}
    architecture = ARCHITECTURES[name] | changes
    size = architecture["image_tower"]["image_size"]
    transform = EvalTransform(size=size, **OPENAI, crop="floor")
    if name == "siglip":
        transform = EvalTransform(size=size, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic", resize="squash")
    if name == "slip":
        transform = EvalTransform(size=size, **IMAGENET)
    return Bundle(
        drawn(build_model(architecture)),
        given["tokenizer"] if "tokenizer" in given else tokenizer_of(name),
        given.get("transform", transform),
        architecture,
        torch.device("cpu"),
        origin=name,
    )


def tokenizer_of(name: str) -> Tokenizer | None:
    """Return a tokenizer with CLIP's vocabulary, except for a model without texts."""
    if name == "simclr":
        return None
    if name == "siglip":
        return TokenizerJson(definition=clip_json(), context_length=CONTEXT, pad=1, pooled="last", clean="siglip")
    truncation = "drop_end" if name == "slip" else "keep_end"
    return ClipBpe(context_length=CONTEXT, truncation=truncation, special_text="token")


def without_vocabulary(name: str) -> Bundle:
    """Return a bundle of an architecture that reads 60 ids and has no vocabulary, which takes less time."""
    text = ARCHITECTURES[name]["text_tower"] | {"vocab_size": 60}
    pooled: dict[str, Any] = {"pooled": "last"} if name == "siglip" else {"pooled": "first", "end": 58}
    tokenizer = BareIds(context_length=CONTEXT, vocab_size=60, **pooled)
    return bundle_of(name, text_tower=text, tokenizer=tokenizer)


def drawn(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and weight.ndim:
            noise = torch.randn(weight.shape, generator=generator)
            scale = (weight.shape[-1] ** -0.5) if weight.ndim > 1 else 0.2
            is_gain = name.endswith("running_var") or (name.endswith("weight") and ("norm" in name or "bn" in name))
            weight.copy_((1 + noise * 0.2).abs() if is_gain else noise * scale)
    return model.eval()


def read_here(
    folder: Any, form: str, inputs: dict[str, np.ndarray], allow: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Load and encode as `check.read_back` does, without the seconds that a process takes."""
    return compute(forms.load(form).read(folder, allow), inputs)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openslip.export.check.read_back", read_here)
