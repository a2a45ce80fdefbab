"""Exports to open_clip, which open_clip itself loads; each planted fault must be refused by the export's own check."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export_models import (
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
from safetensors.torch import load_file, save_file

from openslip.errors import MissingPackage, UserError
from openslip.export import export
from openslip.export.check import LIMIT
from openslip.export.forms import open_clip
from openslip.export.open_clip_image import image_part
from openslip.inference.architecture import build_model
from openslip.inference.formats.openslip import write
from openslip.inference.load import load
from openslip.text.clip_bpe import ClipBpe

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
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
    bundle = bundle_of(architecture, **transform)
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
    text = TEXT | {"activation": "gelu", "norm_eps": 1e-5, "mlp_width": 64, "context_length": 76}
    text["_target_"] = "openslip.models.coca_text.CocaText"
    bundle = bundle_of(two_towers(image, text, width), size=32)
    assert max(deviations(bundle, written(bundle, tmp_path, "open_clip"), "open_clip").values()) <= EQUAL
    assert_equal_weights(bundle, load(tmp_path))
    with pytest.raises(UserError, match="activation gelu with quick_gelu"):
        written(
            bundle_of(two_towers(image, text | {"activation": "quick_gelu"}, width), size=32), tmp_path, "open_clip"
        )
    with pytest.raises(UserError, match=f"queries of width {width}"):
        written(bundle_of(two_towers(image, text, 8), size=32), tmp_path, "open_clip")


@pytest.mark.parametrize(
    "tokenizer",
    [
        ClipBpe(context_length=77, truncation="drop_end", special_text="token"),
        ClipBpe(context_length=77, truncation="keep_end", special_text="token", mask_token=True),
        ClipBpe(context_length=77, truncation="keep_end", special_text="plain"),
        ClipBpe(context_length=77, truncation="keep_end", special_text="token"),
    ],
    ids=["drop_end", "mask_token", "plain", "token"],
)
def test_rules_that_open_clips_tokenizer_lacks_are_in_the_folder(tokenizer: ClipBpe, tmp_path: Path) -> None:
    text = TEXT | {"vocab_size": tokenizer.vocab_size}
    bundle = replace(bundle_of(two_towers(clip()["image_tower"], text)), tokenizer=tokenizer)
    assert max(deviations(bundle, written(bundle, tmp_path, "open_clip"), "open_clip").values()) <= EQUAL
    edited(lambda c: c["model_cfg"]["text_cfg"].update(hf_tokenizer_name=None))(tmp_path)
    with pytest.raises(UserError, match="ids by"):
        deviations(bundle, tmp_path, "open_clip")


def test_a_tokenizer_that_needs_transformers_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        export, "find_spec", lambda name: None if name in ("transformers", "tokenizers") else find_spec(name)
    )
    monkeypatch.setattr(open_clip, "write", lambda bundle, folder: pytest.fail("written"))
    bundle = replace(
        bundle_of(clip()), tokenizer=ClipBpe(context_length=77, truncation="keep_end", special_text="plain")
    )
    write(bundle, tmp_path / "source.ckpt")
    with pytest.raises(MissingPackage, match=r'its check needs transformers; pip install "openslip\[hf\]"'):
        export.export(tmp_path / "source.ckpt", tmp_path / "out", "open_clip")
    assert [path.name for path in tmp_path.iterdir()] == ["source.ckpt"]
    assert open_clip.check_needs(bundle_of(clip())) == ()


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return a fault in the config."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        change(config)
        (folder / CONFIG).write_text(json.dumps(config))

    return edit


def reweighted(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Return a fault in the weights."""

    def edit(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file({name: weight.clone().contiguous() for name, weight in weights.items()}, folder / WEIGHTS)

    return edit


FAULTS: dict[str, Callable[[Path], None]] = {
    "transposed projection": reweighted(lambda w: w.update({"visual.proj": w["visual.proj"].T})),
    "transposed text projection": reweighted(
        lambda w: w.update({"text_projection.weight": w["text_projection.weight"].T})
    ),
    "activation": edited(lambda c: c["model_cfg"].update(quick_gelu=False)),
    "epsilon": edited(lambda c: c["model_cfg"]["text_cfg"].pop("norm_kwargs")),
    "image heads": edited(lambda c: c["model_cfg"]["vision_cfg"].update(head_width=12)),
    "text heads": edited(lambda c: c["model_cfg"]["text_cfg"].update(heads=4)),
    "resize mode": edited(lambda c: c["preprocess_cfg"].update(resize_mode="shortest")),
    "interpolation": edited(lambda c: c["preprocess_cfg"].update(interpolation="bilinear")),
    "mean": edited(lambda c: c["preprocess_cfg"].pop("mean")),
    "projection bias": reweighted(lambda w: w["text_projection.bias"].zero_()),
    "causal mask": edited(lambda c: c["model_cfg"]["text_cfg"].update(no_causal_mask=True)),
    "pooling": edited(lambda c: c["model_cfg"]["text_cfg"].update(pool_type="last")),
    "logit bias": reweighted(lambda w: w["logit_bias"].zero_()),
    "logit scale": reweighted(lambda w: w["logit_scale"].add_(1e-3)),
}


@pytest.fixture(scope="module")
def faultless(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    options = {"embed_dim": 24, "logit_bias_init": -9.0, "projection_bias": "text"}
    architecture = clip(**options)
    architecture["text_tower"] = architecture["text_tower"] | {"width": 24, "norm_eps": 1e-6}
    bundle = bundle_of(architecture, resize="squash")
    folder = written(bundle, tmp_path_factory.mktemp("faultless"), "open_clip")
    deviations(bundle, folder, "open_clip")  # raises no error
    return bundle, folder


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused_by_the_check(fault: str, faultless: tuple[Any, Path], tmp_path: Path) -> None:
    bundle, folder = faultless
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    FAULTS[fault](tmp_path)
    with pytest.raises(UserError, match="differs from ours"):
        deviations(bundle, tmp_path, "open_clip")


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
        written(bundle_of(architecture, **transform), tmp_path, "open_clip")
    assert "use --to" in str(error.value)


def test_an_image_tower_alone_is_no_model_of_open_clip(tmp_path: Path) -> None:
    architecture = {
        "_target_": "openslip.models.image_encoder.ImageEncoder",
        "image_tower": timm_tower("test_vit", 160),
    }
    bundle = replace(bundle_of(slip()), model=build_model(architecture), tokenizer=None, architecture=architecture)
    with pytest.raises(UserError, match="--to timm"):
        written(bundle, tmp_path, "open_clip")
