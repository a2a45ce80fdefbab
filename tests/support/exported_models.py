"""Tiny models to export, with drawn weights; the check runs in this process, without the seconds of a fresh one."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from model_folders import clip_json
from tower_files import drawn

from openslip.data.image.eval_transform import EvalTransform
from openslip.export import check, forms
from openslip.export.read_back import compute
from openslip.inference.architecture import build_model
from openslip.inference.bundle import Bundle
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import TokenizerJson

EQUAL = 1e-5  # largest deviation of an export
CONTEXT = 16
TEXT: dict[str, Any] = {
    "_target_": "openslip.models.text_transformer.TextTransformer",
    "vocab_size": 49408,
    "context_length": CONTEXT,
    "width": 24,
    "depth": 2,
    "heads": 2,
}
BIDIRECTIONAL = {"causal": False, "activation": "gelu_tanh", "norm_eps": 1e-6, "width": 36, "mlp_width": 40}
CLIP_SIZES = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
CLIP_RESNET = {"image_size": 64, "depths": [1, 2, 1, 1], "channels": 8, "width": 12, "heads": 4}
RESNET = {"channels": [8, 8, 8, 16], "layers": [1, 1, 1, 1], "stem_width": 8}


def clip(activation: str = "quick_gelu", norm_eps: float = 1e-5, **options: Any) -> dict[str, Any]:
    """Return the architecture of CLIP's layers, with both towers of the same activation and epsilon."""
    tower = timm_tower("vit_base_patch16_clip_224", 32, act_layer=activation, **CLIP_SIZES) | {"norm_eps": norm_eps}
    return two_towers(tower, TEXT | {"activation": activation, "norm_eps": norm_eps}, **options)


def siglip() -> dict[str, Any]:
    """Return the architecture of SigLIP; open_clip takes its image tower by a name that tower_files.py registers."""
    options = {"projects_image": False, "projection_bias": "text", "logit_bias_init": -9.0}
    return two_towers(timm_tower("vit_made_up_here", 21), TEXT | BIDIRECTIONAL, embed_dim=36, **options)


def clip_resnet() -> dict[str, Any]:
    """Return the architecture of CLIP with its ResNet."""
    tower = {"_target_": "openslip.models.clip_resnet.ClipResNet", **CLIP_RESNET}
    return two_towers(tower, TEXT, embed_dim=12, projects_image=False)


def slip(name: str = "test_vit", image_size: int = 160, **arguments: Any) -> dict[str, Any]:
    """Return the architecture of SLIP: a tower of timm and CLIP's text tower."""
    return two_towers(timm_tower(name, image_size, **arguments), TEXT)


def timm_tower(name: str, image_size: int, **arguments: Any) -> dict[str, Any]:
    target = "openslip.models.timm_tower.TimmTower"
    return {"_target_": target, "name": name, "image_size": image_size, "arguments": arguments}


def two_towers(image: dict[str, Any], text: dict[str, Any], embed_dim: int = 24, **options: Any) -> dict[str, Any]:
    return {
        "_target_": "openslip.models.dual_encoder.DualEncoder",
        "image_tower": image,
        "text_tower": text,
        "embed_dim": embed_dim,
        "logit_scale_init": 2.0,
        **options,
    }


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "clip": clip(),
    "slip": slip("vit_small_patch16_224", 32, **CLIP_SIZES),
    "siglip": siglip(),
    "test_vit": slip(),
    "resnet": slip("resnet18", 32, **RESNET),
    "clip_resnet": clip_resnet(),
    "simclr": {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": timm_tower("test_vit", 160)},
}


def bundle_of(model: str | dict[str, Any], **changes: Any) -> Bundle:
    """Return a model with drawn weights, its tokenizer and its transform.

    Args:
        model: key of ARCHITECTURES, or an architecture.
        changes: `tokenizer`; `transform`, or settings of it; other keys are entries of the architecture.
    """
    tokenizer, transform = (changes.pop(key, key) for key in ("tokenizer", "transform"))
    architecture = (ARCHITECTURES[model] if isinstance(model, str) else model) | changes
    if transform == "transform" or isinstance(transform, dict):
        squashed = {"resize": "squash"} if model == "siglip" else {}
        settings = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic", **squashed}
        size = architecture["image_tower"].get("image_size", 32)
        transform = EvalTransform(**{"size": size, **settings, **(transform if isinstance(transform, dict) else {})})
    torch.manual_seed(0)
    return Bundle(
        drawn(build_model(architecture)),
        tokenizer_of(model, architecture) if tokenizer == "tokenizer" else tokenizer,
        transform,
        architecture,
        torch.device("cpu"),
        origin=model if isinstance(model, str) else "model",
    )


def tokenizer_of(model: str | dict[str, Any], architecture: dict[str, Any]) -> Tokenizer | None:
    """Return CLIP's vocabulary: with SLIP's rules, with SigLIP's for a tower that is not causal, or with CLIP's."""
    text = architecture.get("text_tower")
    if text is None:
        return None
    length = text["context_length"]
    if not text.get("causal", True):
        definition = clip_json()
        return TokenizerJson(definition=definition, context_length=length, pad=49407, pooled="last", clean="siglip")
    if model == "slip":
        return ClipBpe(context_length=length, truncation="drop_end", special_text="token")
    return ClipBpe(context_length=length, truncation="keep_end", special_text="open_clip")


def without_vocabulary(model: str | dict[str, Any], **changes: Any) -> Bundle:
    """Return a bundle of an architecture that reads 60 ids and has no vocabulary, which takes less time."""
    architecture = ARCHITECTURES[model] if isinstance(model, str) else model
    text = architecture["text_tower"] | {"vocab_size": 60}
    pooled: dict[str, Any] = {"pooled": "first", "end": 58} if text.get("causal", True) else {"pooled": "last"}
    tokenizer = BareIds(context_length=CONTEXT, vocab_size=60, **pooled)
    return bundle_of(model, text_tower=text, tokenizer=tokenizer, **changes)


def read_here(
    folder: Any, form: str, inputs: dict[str, np.ndarray], allow: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Load and encode as `check.read_back` does, without the seconds that a process takes."""
    return compute(forms.load(form).read(folder, allow), inputs)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openslip.export.check.read_back", read_here)


@contextmanager
def checked_here() -> Iterator[None]:
    """Run the check of exports in this process, where a fixture of a test is too narrow."""
    with patch.object(check, "read_back", read_here):
        yield


def deviations(bundle: Bundle, folder: Path, form: str) -> dict[str, float]:
    """Check a folder as `openslip export` does."""
    with checked_here():
        return check.compare(bundle, folder, form)


def written(bundle: Bundle, folder: Path, form: str) -> Path:
    """Write a bundle in a form."""
    folder.mkdir(exist_ok=True)
    forms.load(form).write(bundle, folder)
    return folder


def assert_equal_weights(bundle: Bundle, other: Bundle, prefix: str = "") -> None:
    """Compare the weights whose names begin with the prefix."""
    ours, theirs = (
        {name: weight for name, weight in each.model.state_dict().items() if name.startswith(prefix)}
        for each in (bundle, other)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
