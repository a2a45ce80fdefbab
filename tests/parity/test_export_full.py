"""Exports of full-size models, confirmed by fresh processes."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_models import BIDIRECTIONAL, TEXT, bundle_of, timm_tower
from model_folders import sentencepiece_model

import openslip
from openslip.commands.export import main
from openslip.data.image.eval_transform import EvalTransform
from openslip.export.forms import huggingface
from openslip.inference.bundle import Bundle
from openslip.inference.formats.openslip import write
from openslip.inference.layouts.transforms import OPENAI
from openslip.text.clip_bpe import ClipBpe
from openslip.text.sentencepiece_model import SentencePieceModel

RN50 = {"depths": [3, 4, 6, 3], "channels": 64, "width": 1024, "heads": 32}


def full_size(name: str) -> Bundle:
    """Return CLIP's or SLIP's ViT-B/16, SigLIP's ViT-B/16, or CLIP's RN50, with drawn weights."""
    text = TEXT | {"context_length": 77, "width": 512, "depth": 12, "heads": 8}
    options: dict[str, Any] = {
        "tokenizer": ClipBpe(context_length=77, truncation="keep_end", special_text="token"),
        "transform": EvalTransform(size=224, **OPENAI),
    }
    if name == "siglip":
        tokenizer = SentencePieceModel(model=base64.b64encode(sentencepiece_model()).decode(), context_length=64)
        text |= BIDIRECTIONAL | {"vocab_size": 32000, "context_length": 64, "width": 768, "heads": 12}
        text |= {"mlp_width": 3072, "activation": "gelu"}
        transform = EvalTransform(size=224, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic", resize="squash")
        tower = timm_tower("vit_base_patch16_siglip_224", 224)
        options |= {"tokenizer": tokenizer, "transform": transform, "image_tower": tower, "embed_dim": 768}
        return bundle_of("siglip", text_tower=text, **options)
    if name == "resnet":
        tower = {"_target_": "openslip.models.clip_resnet.ClipResNet", "image_size": 224, **RN50}
        return bundle_of("clip_resnet", image_tower=tower, text_tower=text, embed_dim=1024, **options)
    if name == "clip":
        tower = timm_tower("vit_base_patch16_clip_224", 224, act_layer="quick_gelu") | {"norm_eps": 1e-5}
    else:
        tower = timm_tower("vit_base_patch16_224", 224)
    return bundle_of("clip", image_tower=tower, text_tower=text, embed_dim=512, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "slip", "siglip"])
def test_a_vit_b_is_confirmed_by_transformers_and_comes_back(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bundle = full_size(name)
    write(bundle, tmp_path / "source.safetensors")
    assert main([str(tmp_path / "source.safetensors"), str(tmp_path / "out"), "--to", "huggingface"]) == 0
    printed = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[:-1])
    values = {key.split()[0]: value for key, value in printed.items()}
    assert max(float(values[key]) for key in ("pixels", "image_features", "text_features", "logit_scale")) <= 1e-5
    assert max(float(values[key]) for key in ("image_features_64", "text_features_64")) <= 1e-12
    again = openslip.load(tmp_path / "out")
    ours, theirs = bundle.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(again.encode_image(images), bundle.encode_image(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(again.encode_text(["a cat"]), bundle.encode_text(["a cat"]), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_export_that_its_library_does_not_confirm_has_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from openslip.__main__ import run  # noqa: PLC0415

    write(bundle_of("clip"), tmp_path / "source.ckpt")
    right = huggingface.write

    def wrong(bundle: Bundle, folder: Path) -> None:
        right(bundle, folder)
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["eos_token_id"] = 49406
        (folder / "config.json").write_text(json.dumps(config))

    monkeypatch.setattr(huggingface, "write", wrong)
    assert run(["export", str(tmp_path / "source.ckpt"), str(tmp_path / "out"), "--to", "huggingface"]) == 1
    assert "differs from ours in text_features" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, form) for name in ("clip", "slip") for form in ("open_clip", "timm", "onnx")),
        *(("siglip", form) for form in ("open_clip", "timm")),  # its vocabulary, a spiece.model, is none of ONNX's
        *(("resnet", form) for form in ("open_clip", "onnx")),
    ],
)
def test_a_full_size_model_is_confirmed_by_the_library_of_each_form(
    name: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write(full_size(name), tmp_path / "source.safetensors")
    assert main([str(tmp_path / "source.safetensors"), str(tmp_path / "out"), "--to", form]) == 0
    values = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[:-1])
    numbers = {key: float(value) for key, value in values.items() if key != "ids"}
    assert {"pixels", "image_features"} <= numbers.keys()
    assert max(numbers.values()) <= (1e-4 if form == "onnx" else 1e-5)
