"""Tiny models whose exports tests check, with drawn weights; the check runs in this process, which takes no time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from exported_models import read_here
from model_folders import clip_json
from tower_files import drawn

from openslip.data.image.eval_transform import EvalTransform
from openslip.export import check, forms
from openslip.inference.architecture import build_model
from openslip.inference.bundle import Bundle
from openslip.text.clip_bpe import ClipBpe
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import TokenizerJson

EQUAL = 1e-5  # largest deviation of an export
TEXT = {
    "_target_": "openslip.models.text_transformer.TextTransformer",
    "vocab_size": 49408,
    "context_length": 77,
    "width": 16,
    "depth": 2,
    "heads": 2,
}
BIDIRECTIONAL = {"context_length": 16, "causal": False, "activation": "gelu_tanh", "norm_eps": 1e-6, "mlp_width": 40}
CLIP_SIZES = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
RESNET = {"image_size": 64, "depths": [1, 2, 1, 1], "channels": 8, "width": 12, "heads": 4}


def clip(activation: str = "quick_gelu", norm_eps: float = 1e-5, **options: Any) -> dict[str, Any]:
    """Return the architecture of CLIP's layers, with both towers of the same activation and epsilon."""
    tower = timm_tower("vit_base_patch16_clip_224", 32, act_layer=activation, **CLIP_SIZES) | {"norm_eps": norm_eps}
    return two_towers(tower, TEXT | {"activation": activation, "norm_eps": norm_eps}, **options)


def siglip() -> dict[str, Any]:
    """Return the architecture of SigLIP; open_clip takes its image tower by a name that tower_files.py registers."""
    tower = timm_tower("vit_made_up_here", 21)
    options = {"projects_image": False, "projection_bias": "text", "logit_bias_init": -9.0}
    return two_towers(tower, TEXT | BIDIRECTIONAL, embed_dim=36, **options)


def clip_resnet() -> dict[str, Any]:
    """Return the architecture of CLIP with its ResNet."""
    tower = {"_target_": "openslip.models.clip_resnet.ClipResNet", **RESNET}
    return two_towers(tower, TEXT, projects_image=False)


def slip(name: str = "test_vit", image_size: int = 160, **arguments: Any) -> dict[str, Any]:
    """Return the architecture of SLIP: a tower of timm and CLIP's text tower."""
    return two_towers(timm_tower(name, image_size, **arguments), TEXT)


def timm_tower(name: str, image_size: int, **arguments: Any) -> dict[str, Any]:
    target = "openslip.models.timm_tower.TimmTower"
    return {"_target_": target, "name": name, "image_size": image_size, "arguments": arguments}


def two_towers(image: dict[str, Any], text: dict[str, Any], embed_dim: int = 12, **options: Any) -> dict[str, Any]:
    return {
        "_target_": "openslip.models.dual_encoder.DualEncoder",
        "image_tower": image,
        "text_tower": text,
        "embed_dim": embed_dim,
        "logit_scale_init": 2.0,
        **options,
    }


def bundle_of(architecture: dict[str, Any], **transform: Any) -> Bundle:
    """Return the model with its tokenizer: CLIP's, or SigLIP's rules for a tower that is not causal."""
    torch.manual_seed(0)
    text = architecture["text_tower"]
    tokenizer: Tokenizer = ClipBpe(
        context_length=text["context_length"], truncation="keep_end", special_text="open_clip"
    )
    if not text.get("causal", True):
        tokenizer = TokenizerJson(
            definition=clip_json(), context_length=text["context_length"], pad=49407, pooled="last", clean="siglip"
        )
    prepared = EvalTransform(
        **{
            "size": architecture["image_tower"].get("image_size"),
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.3, 0.25],
            "interpolation": "bicubic",
            **transform,
        }
    )
    return Bundle(drawn(build_model(architecture)), tokenizer, prepared, architecture, torch.device("cpu"))


@contextmanager
def checked_here() -> Iterator[None]:
    """Run the check of exports in this process."""
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
