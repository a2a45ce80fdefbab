"""Exports to timm, which timm itself loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from exported_models import EQUAL, assert_equal_weights, bundle_of, clip, clip_resnet, deviations, siglip, slip, written
from safetensors.torch import load_file, save_file

from openslip.errors import UserError
from openslip.export.check import LIMIT
from openslip.inference.load import load

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.mark.parametrize(
    ("architecture", "transform"),
    [
        (clip(), {"crop": "floor"}),
        (slip(num_heads=1), {"resize_to": 183}),
        (slip() | {"projection_bias": True}, {"interpolation": "bilinear"}),
        (slip("test_resnet"), {}),
        (slip("test_efficientnet"), {}),
        (siglip(), {"resize": "squash"}),
    ],
    ids=["clip", "other heads", "projection bias", "resnet", "batch norm", "siglip"],
)
def test_timm_computes_the_same_and_our_reader_reads_the_same_tower(
    architecture: dict[str, Any], transform: dict[str, Any], tmp_path: Path
) -> None:
    bundle = bundle_of(architecture, transform=transform)
    found = deviations(bundle, written(bundle, tmp_path, "timm"), "timm")
    assert found.pop("crop", 1) > LIMIT
    assert found.keys() == {"pixels", "image_features", "image_features_64"}
    assert max(found.values()) <= EQUAL
    again = load(tmp_path)
    assert_equal_weights(bundle, again, "image_tower.")
    pixels = torch.randn(2, 3, again.transform.size, again.transform.size)
    with torch.no_grad():
        torch.testing.assert_close(
            again.model.encode_image(pixels), bundle.model.eval().encode_image(pixels), rtol=EQUAL, atol=EQUAL
        )


def test_a_classifier_is_read_only_if_the_config_says_that_it_is_the_projection(tmp_path: Path) -> None:
    bundle = bundle_of(slip() | {"embed_dim": 9})
    folder = written(bundle, tmp_path, "timm")
    again = load(folder)
    assert [weight.shape for weight in again.model.image_projection.parameters()] == [(9, 64), (9,)]
    twice = written(again, tmp_path / "again", "timm")
    assert (twice / CONFIG).read_text() == (folder / CONFIG).read_text()
    pixels = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(load(twice).encode_image(pixels), again.encode_image(pixels))
    weights = load_file(twice / WEIGHTS)
    del weights["head.weight"]
    save_file(weights, twice / WEIGHTS)
    with pytest.raises(UserError, match=r"lacks the weight head\.weight"):
        load(twice)
    config = json.loads((folder / CONFIG).read_text())
    del config["classifier_is_projection"]  # as in a folder of another origin
    (folder / CONFIG).write_text(json.dumps(config))
    assert load(folder).encode_image(pixels).shape == (2, 64)


def test_without_classifier_timm_returns_the_feature_before_the_projection(tmp_path: Path) -> None:
    bundle = bundle_of(slip())
    folder = written(bundle, tmp_path, "timm")
    images = torch.randn(2, 3, 160, 160)
    tower = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        torch.testing.assert_close(tower(images), bundle.model.eval().image_tower(images), rtol=EQUAL, atol=EQUAL)


def test_an_image_tower_alone_has_no_classifier(tmp_path: Path) -> None:
    bundle = bundle_of("simclr")
    assert max(deviations(bundle, written(bundle, tmp_path, "timm"), "timm").values()) <= EQUAL
    assert json.loads((tmp_path / CONFIG).read_text())["num_classes"] == 0
    assert_equal_weights(bundle, load(tmp_path))


@pytest.mark.parametrize(
    ("architecture", "transform", "reason"),
    [
        (clip(norm_eps=1e-6), {}, r"norm1.eps 1e-06 \(there 1e-05\)"),
        (clip_resnet(), {}, "ClipResNet; use --to open_clip"),
        (slip(), {"resize": "longest"}, "pads images with their mean"),
    ],
    ids=["epsilon", "resnet of CLIP", "longest"],
)
def test_what_timm_cannot_express_is_refused_with_another_form(
    architecture: dict[str, Any], transform: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason) as error:
        written(bundle_of(architecture, transform=transform), tmp_path, "timm")
    assert "use --to" in str(error.value)
