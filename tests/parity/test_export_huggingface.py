"""Exports to transformers: its features are ours, and ours come back."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exported_models import ARCHITECTURES, TEXT, bundle_of, in_process, without_vocabulary
from model_folders import sentencepiece_model
from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

import openslip
from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.export.card_code import code_of
from openslip.export.export import export
from openslip.export.forms import huggingface
from openslip.export.inputs import CAPTIONS, ENDS, draw_images
from openslip.export.tokenizer_files import write_tokenizer
from openslip.inference.bundle import Bundle
from openslip.inference.formats.openslip import write
from openslip.inference.layouts.huggingface_tokenizer import tokenizer_in
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.sentencepiece_model import SentencePieceModel

__all__ = ["in_process"]
pytestmark = pytest.mark.usefixtures("in_process")

CLASSES = {
    "clip": "CLIPModel",
    "slip": "VisionTextDualEncoderModel",
    "siglip": "SiglipModel",
    "test_vit": "VisionTextDualEncoderModel",
    "resnet": "VisionTextDualEncoderModel",
}
TEXTS = ["a red ring", "A photo of Größe, 3 of them", "three dogs " * 40]


def exported(bundle: Bundle, folder: Path) -> tuple[Bundle, dict[str, float]]:
    write(bundle, folder / "source.ckpt")
    deviations = export(folder / "source.ckpt", folder / "out", "huggingface")
    assert deviations is not None
    deviations.pop("crop", None)  # outside the check's limit
    return openslip.load(folder / "out"), deviations


@pytest.mark.parametrize("name", CLASSES)
def test_weights_and_features_come_back(name: str, tmp_path: Path):
    bundle = bundle_of(name)
    again, deviations = exported(bundle, tmp_path)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == [CLASSES[name]]
    assert deviations.keys() >= {"pixels", "ids", "image_features", "text_features", "logit_scale"}
    assert ("logit_bias" in deviations) == (name == "siglip")
    assert max(deviations.values()) <= 1e-5
    ours, theirs = bundle.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    torch.testing.assert_close(again.encode_text(TEXTS), bundle.encode_text(TEXTS), rtol=0, atol=1e-5)
    images = torch.randn(3, 3, bundle.transform.size, bundle.transform.size)
    torch.testing.assert_close(again.encode_image(images), bundle.encode_image(images), rtol=0, atol=1e-5)
    assert {**again.transform.settings(), "crop": "floor"} == {**bundle.transform.settings(), "crop": "floor"}


def test_a_sentencepiece_vocabulary_comes_back(tmp_path: Path):
    tokenizer = SentencePieceModel(model=base64.b64encode(sentencepiece_model()).decode(), context_length=16)
    text = ARCHITECTURES["siglip"]["text_tower"] | {"vocab_size": tokenizer.vocab_size}
    again, deviations = exported(bundle_of("siglip", tokenizer=tokenizer, text_tower=text), tmp_path)
    assert max(deviations.values()) <= 1e-5
    assert again.need_tokenizer().settings() == tokenizer.settings()


SETTINGS = [
    {"truncation": truncation, "special_text": special_text, "mask_token": special_text == "open_clip"}
    for truncation in ("keep_end", "drop_end")
    for special_text in ("plain", "token", "open_clip")
    if (truncation, special_text) != ("drop_end", "plain")
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_ids_keep_our_truncation_and_special_tokens(settings: dict[str, Any], tmp_path: Path):
    """The library reads the tokenizer back; so does OpenSLIP, whose lengths must then be the same too."""
    tokenizer = ClipBpe(context_length=9, **settings)
    write_tokenizer(tokenizer, tmp_path, "huggingface")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    library = AutoTokenizer.from_pretrained(tmp_path)
    end = tokenizer.special_ids["end"]
    read = tokenizer_in(
        tmp_path, family="clip", context_length=9, vocab_size=tokenizer.vocab_size, pooled="first", end=end
    )
    texts = [*TEXTS, *CAPTIONS, "the dog\u2019s \u201cbone\u201d", "a b c d e f g", "a b c d e f g h"]
    texts += [*ENDS, "<start_of_text>x<end_of_text> y"]
    ids, lengths = tokenizer.encode(texts)
    rows = torch.tensor(library(texts, padding="max_length", truncation=True)["input_ids"])
    other, other_lengths = read.encode(texts)
    is_read = torch.arange(9) < lengths[:, None]
    assert torch.equal(rows[is_read], ids[is_read])
    assert torch.equal(other[is_read], ids[is_read])
    assert torch.equal(other_lengths, lengths)
    pooled = (rows == end).int().argmax(dim=1)  # as transformers finds it
    assert torch.equal(pooled, lengths - 1)


def test_a_tokenizer_whose_end_would_be_a_literal_text_is_refused(tmp_path: Path):
    tokenizer = ClipBpe(context_length=9, truncation="drop_end", special_text="plain")
    with pytest.raises(UserError, match=r"special_text=plain\); use --to safetensors"):
        write_tokenizer(tokenizer, tmp_path, "huggingface")


@pytest.mark.parametrize("name", ["slip", "siglip"])
def test_the_lines_of_the_card_compute_what_openslip_computes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With all that the tokenizer returns, and with images of several sizes."""
    bundle = bundle_of(name)
    huggingface.write(bundle, tmp_path)
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    draw_images()[0].convert("RGB").save("image.jpg")
    exec(code_of("huggingface", bundle).replace("FOLDER", str(tmp_path)), names)
    pixels = names["processor"](images=draw_images(), return_tensors="pt")["pixel_values"]
    expected = torch.stack([huggingface.transform(bundle)(image) for image in draw_images()])
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-5)
    rows = names["tokenizer"](CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        features = F.normalize(names["model"].get_text_features(**rows).pooler_output, dim=1)
    torch.testing.assert_close(features, bundle.encode_text(CAPTIONS), rtol=0, atol=1e-5)


def test_the_towers_of_clip_load_alone(tmp_path: Path):
    bundle = bundle_of("clip")
    huggingface.write(bundle, tmp_path)
    ids, lengths = bundle.need_tokenizer().encode(TEXTS)
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        texts = CLIPTextModelWithProjection.from_pretrained(tmp_path)(input_ids=ids).text_embeds
        images = CLIPVisionModelWithProjection.from_pretrained(tmp_path)(pixel_values=pixels).image_embeds
        torch.testing.assert_close(texts, bundle.model.encode_text(ids, lengths), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(images, bundle.model.encode_image(pixels), rtol=1e-5, atol=1e-5)


def test_a_vocabulary_that_is_not_known_needs_no_tokenizer(tmp_path: Path):
    again, deviations = exported(without_vocabulary("clip"), tmp_path)
    features = {f"{tower}_features{kind}" for tower in ("image", "text") for kind in ("", "_64")}
    assert deviations.keys() == {"pixels", "logit_scale", *features}
    assert isinstance(again.tokenizer, BareIds)


LONGEST = EvalTransform(size=32, mean=[0.5] * 3, std=[0.5] * 3, resize="longest")
COCA = {key: TEXT[key] for key in ("vocab_size", "context_length", "width", "depth", "heads")}
COCA |= {"activation": "gelu", "norm_eps": 1e-5, "mlp_width": 60}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a model without texts": ("simclr", {}, r"without a text tower; use --to timm"),
    "a logit bias": (
        "clip",
        {"logit_bias_init": -10.0},
        r"with logit_bias \(only SiglipModel has it, with SigLIP's towers\); use --to onnx",
    ),
    "a text bias": ("slip", {"projection_bias": "text"}, r"these towers with text_projection_bias; use --to onnx"),
    "tokens": ("clip", {"token_dim": 8}, r"projections of single tokens; use --to safetensors"),
    "a mask": ("clip", {"text_tower": TEXT | {"causal": False}}, r"not causal .*; use --to onnx, or --to open_clip if"),
    "no projection": ("slip", {"projects_image": False}, r"these towers with no image projection; use --to onnx"),
    "an epsilon of timm": (
        "slip",
        {"image_tower": ARCHITECTURES["slip"]["image_tower"] | {"norm_eps": 1e-5}},
        r"to safetensors",
    ),
    "CLIP's ResNet": (
        "clip",
        {"image_tower": ARCHITECTURES["clip_resnet"]["image_tower"]},
        r"a ClipResNet with these layers; use --to open_clip",
    ),
    "CoCa": (
        "clip",
        {"text_tower": COCA | {"_target_": "openslip.models.coca_text.CocaText"}},
        r"a CocaText; use --to safetensors",
    ),
    "padding": ("clip", {"transform": LONGEST}, r"resizes the longest side .*; use --to open_clip"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_class_has_is_refused_with_the_form_that_has_it(kind: str, tmp_path: Path):
    name, changes, message = REFUSED[kind]
    with pytest.raises(UserError, match=message):
        huggingface.write(bundle_of(name, **changes), tmp_path)
