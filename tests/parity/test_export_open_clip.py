"""Exports to open_clip, which open_clip itself loads."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_models import (
    CONTEXT,
    EQUAL,
    TEXT,
    assert_equal_weights,
    bundle_of,
    clip,
    clip_resnet,
    deviations,
    siglip,
    slip,
    timm_tower,
    two_towers,
    written,
)

from openslip.errors import MissingPackage, UserError
from openslip.export import export, packages
from openslip.export.check import LIMIT
from openslip.export.forms import open_clip
from openslip.export.open_clip_image import image_part
from openslip.export.packages import Packages
from openslip.inference.architecture import build_model
from openslip.inference.formats.openslip import write
from openslip.inference.load import load
from openslip.text.clip_bpe import ClipBpe

CONFIG = "open_clip_config.json"
ALL = {"pixels", "ids", "logit_scale", "image_features", "image_features_64", "text_features", "text_features_64"}


@pytest.mark.parametrize(
    ("architecture", "transform"),
    [
        (clip(), {}),
        (clip("gelu", 1e-6, logit_bias_init=-9.0, projection_bias="text"), {"resize": "squash"}),
        (clip("gelu_tanh"), {"interpolation": "bilinear", "resize": "longest"}),
        (clip_resnet(), {"crop": "floor"}),
        (slip(), {}),
        (slip("test_efficientnet"), {}),
        (siglip(), {"resize": "squash"}),
    ],
    ids=["quick_gelu", "gelu", "gelu_tanh", "resnet", "slip", "batch norm", "siglip"],
)
def test_open_clip_computes_the_same_and_our_reader_reads_the_same_weights(
    architecture: dict[str, Any], transform: dict[str, Any], tmp_path: Path
) -> None:
    bundle = bundle_of(architecture, transform=transform)
    found = deviations(bundle, written(bundle, tmp_path, "open_clip"), "open_clip")
    assert ("crop" in found) == (transform.get("crop") == "floor")
    assert found.pop("crop", 1) > LIMIT
    assert found.keys() == ALL | ({"logit_bias"} if bundle.model.logit_bias is not None else set())
    assert max(found.values()) <= EQUAL
    assert_equal_weights(bundle, load(tmp_path))


@pytest.mark.parametrize("width", [24, 12], ids=["joint projections", "separate projections"])
def test_coca_is_a_custom_text_model_without_its_decoder(width: int, tmp_path: Path) -> None:
    inner = clip("gelu")["image_tower"]
    image = {
        "_target_": "openslip.models.attentional_pooling.AttentionalPooling",
        "tower": inner | {"arguments": inner["arguments"] | {"final_norm": False}},
        "queries": 5,
        "heads": 2,
        "width": width,
        "norm_eps": 1e-5,
    }
    text = TEXT | {"activation": "gelu", "norm_eps": 1e-5, "mlp_width": 64, "context_length": CONTEXT - 1}
    text["_target_"] = "openslip.models.coca_text.CocaText"
    bundle = bundle_of(two_towers(image, text, width), transform={"size": 32})
    assert max(deviations(bundle, written(bundle, tmp_path, "open_clip"), "open_clip").values()) <= EQUAL
    assert_equal_weights(bundle, load(tmp_path))
    mixed = two_towers(image, text | {"activation": "quick_gelu"}, width)
    with pytest.raises(UserError, match="activation gelu with quick_gelu"):
        written(bundle_of(mixed, transform={"size": 32}), tmp_path, "open_clip")
    with pytest.raises(UserError, match=f"queries of width {width}"):
        written(bundle_of(two_towers(image, text, 8), transform={"size": 32}), tmp_path, "open_clip")


@pytest.mark.parametrize(
    "tokenizer",
    [
        ClipBpe(context_length=CONTEXT, truncation="drop_end", special_text="token"),
        ClipBpe(context_length=CONTEXT, truncation="keep_end", special_text="token", mask_token=True),
        ClipBpe(context_length=CONTEXT, truncation="keep_end", special_text="plain"),
        ClipBpe(context_length=CONTEXT, truncation="keep_end", special_text="token"),
    ],
    ids=["drop_end", "mask_token", "plain", "token"],
)
def test_rules_that_open_clips_tokenizer_lacks_are_in_the_folder(tokenizer: ClipBpe, tmp_path: Path) -> None:
    text = TEXT | {"vocab_size": tokenizer.vocab_size}
    bundle = replace(bundle_of(two_towers(clip()["image_tower"], text)), tokenizer=tokenizer)
    assert max(deviations(bundle, written(bundle, tmp_path, "open_clip"), "open_clip").values()) <= EQUAL
    config = json.loads((tmp_path / CONFIG).read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = None
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="ids by"):
        deviations(bundle, tmp_path, "open_clip")


def test_a_tokenizer_that_needs_transformers_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        packages, "find_spec", lambda name: None if name in ("transformers", "tokenizers") else find_spec(name)
    )
    monkeypatch.setattr(open_clip, "write", lambda bundle, folder: pytest.fail("written"))
    bundle = replace(
        bundle_of(clip()), tokenizer=ClipBpe(context_length=CONTEXT, truncation="keep_end", special_text="plain")
    )
    write(bundle, tmp_path / "source.ckpt")
    with pytest.raises(MissingPackage, match=r'its check needs transformers; pip install "openslip\[hf\]"'):
        export.export(tmp_path / "source.ckpt", tmp_path / "out", "open_clip")
    assert [path.name for path in tmp_path.iterdir()] == ["source.ckpt"]
    assert open_clip.check_needs(bundle_of(clip())) == Packages()


def test_a_vit_small_with_12_heads_is_refused_with_the_form_that_holds_it() -> None:
    with torch.device("meta"):
        model: Any = build_model(slip("vit_small_patch16_224", 224, num_heads=12))
    with pytest.raises(UserError, match=r"num_heads 12 \(there 6\); use --to huggingface"):
        image_part(model, 224, "quick_gelu")


@pytest.mark.parametrize(
    ("options", "other"), [({"logit_bias_init": -10.0}, "logit_bias"), ({"projection_bias": "text"}, "text_projection")]
)
def test_what_open_clip_and_transformers_refuse_has_the_advice_of_a_form_that_can_hold_it(
    options: dict[str, Any], other: str, tmp_path: Path
) -> None:
    bundle = bundle_of(slip(num_heads=1) | options)
    with pytest.raises(UserError, match=r"; use --to onnx \(--to huggingface cannot hold " + other):
        written(bundle, tmp_path, "open_clip")
    with pytest.raises(UserError, match=f"with {other}.*; use --to onnx"):
        written(bundle, tmp_path, "huggingface")


def test_a_named_trunk_is_known_by_its_layers_and_not_by_its_own_name() -> None:
    sizes = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    with torch.device("meta"):
        model: Any = build_model(slip("vit_base_patch16_224", 224, **sizes))
    assert image_part(model, 224, "quick_gelu").config["timm_model_name"] == "vit_small_patch16_224"


@pytest.mark.parametrize(
    ("architecture", "transform", "reason"),
    [
        (clip() | {"text_tower": TEXT | {"activation": "gelu"}}, {}, "activation quick_gelu with gelu"),
        (slip(init_values=1e-5), {}, "blocks.0.ls1"),
        (slip(qk_norm=True), {}, "attn.k_norm"),
        (slip() | {"text_tower": TEXT | {"pooling": "mean"}}, {}, "pooling=mean; use --to onnx"),
        (slip(), {"resize_to": 180}, "crops no margin"),
        (slip() | {"token_dim": 8}, {}, "use --to safetensors"),
    ],
    ids=["mixed activations", "layer scale", "query norm", "mean", "margin", "token projections"],
)
def test_what_open_clip_cannot_express_is_refused_with_another_form(
    architecture: dict[str, Any], transform: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason) as error:
        written(bundle_of(architecture, transform=transform), tmp_path, "open_clip")
    assert "use --to" in str(error.value)


def test_an_image_tower_alone_is_no_model_of_open_clip(tmp_path: Path) -> None:
    architecture = {
        "_target_": "openslip.models.image_encoder.ImageEncoder",
        "image_tower": timm_tower("test_vit", 160),
    }
    bundle = replace(bundle_of(slip()), model=build_model(architecture), tokenizer=None, architecture=architecture)
    with pytest.raises(UserError, match="--to timm"):
        written(bundle, tmp_path, "open_clip")
