"""`open_clip:MODEL/PRETRAINED`: open_clip's own features, without a network; and folders of timm."""

import json
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import pytest
import timm
import torch
from model_folders import odd_images, odd_texts
from recorded_towers import TOLERANCE
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor

import openslip
from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import MissingPackage, UserError
from openslip.inference.choices import Choices
from openslip.inference.classifier import ZeroShotClassifier
from openslip.inference.formats.openslip import write
from openslip.inference.libraries import open_clip as library

NAME = "tiny"
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 24},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make open_clip know a tiny model, and return the folder of its config and weights."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(NAME)
    torch.save(model.state_dict(), folder / "weights.pt")
    squash = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": squash}))
    return folder


def unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=1)


@pytest.mark.parametrize("kind", ["name and file", "local-dir"])
def test_features_pixels_and_ids_are_those_of_open_clip(tiny: Path, kind: str):
    local = kind == "local-dir"
    name, pretrained = (f"local-dir:{tiny}", None) if local else (NAME, str(tiny / "weights.pt"))
    model, apply = cast(Any, open_clip.create_model_from_pretrained(name, pretrained))
    tokenizer: Any = open_clip.get_tokenizer(name)
    address = f"open_clip:{name}" if local else f"open_clip:{name}/{pretrained}"
    bundle = openslip.load(address)
    assert (bundle.transform.size, bundle.origin) == (24, address)
    pixels = torch.stack([apply(image) for image in odd_images()])
    assert torch.equal(torch.stack([bundle.transform(image) for image in odd_images()]), pixels)
    assert bundle.tokenizer is not None
    assert torch.equal(bundle.tokenizer.encode(odd_texts())[0], tokenizer(odd_texts()))
    assert bundle.tokenizer.decode(tokenizer(["a red ring"])[0].tolist()).startswith("<start_of_text>a red ring")
    with torch.no_grad():
        images, texts = model.eval().encode_image(pixels), model.encode_text(tokenizer(odd_texts()))
    for ours, theirs in ((bundle.encode_image(odd_images()), images), (bundle.encode_text(odd_texts()), texts)):
        assert (ours - unit(theirs)).abs().max() <= TOLERANCE * unit(theirs).abs().max()
    assert torch.equal(bundle.scale(), model.logit_scale.detach().exp())
    assert bundle.model.logit_bias is None


def test_a_model_of_the_library_classifies_and_leaves_no_file(tiny: Path, tmp_path: Path):
    bundle, image = openslip.load(f"open_clip:local-dir:{tiny}"), odd_images()[13]
    ranking: dict[str, Any] = dict(ZeroShotClassifier(bundle, ["ring", "cross"], cache=tmp_path).rank([image])[0])
    loaded: Any = open_clip.create_model_from_pretrained(f"local-dir:{tiny}")
    model = loaded[0]
    tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{tiny}")
    with torch.no_grad():
        texts = unit(model.eval().encode_text(tokenizer(["a photo of a ring.", "a photo of a cross."])))
        logits = model.logit_scale.exp() * unit(model.encode_image(bundle.transform(image)[None])) @ texts.T
    assert [ranking["ring"], ranking["cross"]] == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-5)
    assert not [*tmp_path.iterdir()]


def test_pixels_are_also_those_of_our_own_transform(tiny: Path):
    half = [0.5, 0.5, 0.5]
    ours = EvalTransform(size=24, mean=half, std=half, resize="squash", transparency="ignore")
    theirs = openslip.load(f"open_clip:local-dir:{tiny}").transform
    for image in odd_images():
        rgb = image.convert("RGB")  # open_clip resizes images of other modes before it converts them
        np.testing.assert_allclose(ours(rgb), theirs(rgb), atol=1e-6, rtol=0)


ADDRESSES = {
    "ViT-B-23/openai": r"open_clip has no model ViT-B-23; similar names: .*ViT-B-32",
    "ViT-B-32": r"expected open_clip:ViT-B-32/PRETRAINED, a file with weights or a tag: openai, laion400m_e31",
    "ViT-B-32/": r"expected open_clip:ViT-B-32/PRETRAINED",
    "ViT-B-32/no_such_tag": r"^open_clip:ViT-B-32/no_such_tag: open_clip cannot load it \(.*not a known tag",
    "local-dir:/nowhere": r"^open_clip:local-dir:/nowhere: open_clip cannot load it",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_unknown_model_is_one_line(address: str):
    with pytest.raises(UserError, match=ADDRESSES[address]) as caught:
        openslip.load(f"open_clip:{address}")
    assert "\n" not in str(caught.value)


def test_an_activation_that_is_not_that_of_the_weights_is_refused(monkeypatch: pytest.MonkeyPatch):
    def warned(*_: Any) -> None:
        warnings.warn("QuickGELU mismatch between final model config and pretrained tag.", UserWarning, stacklevel=2)

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", warned)
    with pytest.raises(UserError, match=r"^open_clip:ViT-B-32/openai: QuickGELU mismatch .* ViT-B-32-quickgelu"):
        openslip.load("open_clip:ViT-B-32/openai")


def test_a_pickle_with_code_is_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self) -> tuple:
            return (open, ("executed", "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"open_clip cannot load it"):
        openslip.load(f"open_clip:{NAME}/{tmp_path}/evil.pt")
    assert not (tmp_path / "executed").exists()


def test_what_the_library_decides_is_not_chosen_and_not_stored(tiny: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"image_heads=2: open_clip:.* says it itself"):
        openslip.load(f"open_clip:local-dir:{tiny}", image_heads=2)
    with pytest.raises(UserError, match=r"cannot be stored in a checkpoint"):
        write(openslip.load(f"open_clip:local-dir:{tiny}"), tmp_path / "stripped.ckpt")


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(MissingPackage, match=r"pip install open_clip_torch$"):
        library.read("ViT-B-32/openai", Choices())


TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 3}),
    "resnet": ("resnet18", {}),
}


@pytest.mark.parametrize("kind", TIMM)
def test_a_folder_of_timm_has_the_features_and_pixels_of_timm(kind: str, tmp_path: Path):
    name, arguments = TIMM[kind]
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=10, **arguments).eval()
    for file in ("model.safetensors", "pytorch_model.bin"):
        folder = tmp_path / file
        timm.models.save_for_hf(
            model, str(folder), model_args=arguments, safe_serialization=file.endswith("safetensors")
        )
        bundle = openslip.load(folder)
        assert bundle.tokenizer is None
        again = timm.create_model(f"local-dir:{folder}", pretrained=True)
        config = resolve_model_data_config(again)
        if config["input_size"][1] != arguments.get("img_size", 224):
            pytest.skip("this timm forgets the image size in the arguments of the model")
        theirs: Any = create_transform(**config, is_training=False)
        images = [image.convert("RGB") for image in odd_images() if min(image.size) > 1][:12]
        for image in images:
            torch.testing.assert_close(bundle.transform(image), theirs(image), atol=1e-6, rtol=0)
        pixels = torch.stack([theirs(image) for image in images[:3]])
        with torch.no_grad():
            expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
            features = bundle.model.encode_image(pixels)
        assert (features - expected).abs().max() <= TOLERANCE * expected.abs().max()


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown architecture": ({"architecture": "os.system"}, r"'os\.system' is not a model of this timm"),
    "an address": ({"architecture": "hf-hub:o/n"}, r"'hf-hub:o/n' is not a model of this timm"),
    "weights from elsewhere": ({"model_args": {"checkpoint_path": "/etc/passwd"}}, r"would load weights"),
    "a class": ({"model_args": {"x": {"_target_": "os.system"}}}, r"names _target_ 'os\.system'"),
    "another depth": ({"model_args": {"depth": 3, "img_size": 32}}, r"weights matched"),
    "no square": ({"model_args": {"img_size": [32, 48]}}, r"expected a square"),
    "a list": ({"model_args": [1]}, r"model_args is a list"),
    "another crop": ({"pretrained_cfg": {"crop_mode": "border"}}, r"crop_mode=border"),
    "a list of interpolations": ({"pretrained_cfg": {"interpolation": []}}, r"interpolation=\[\]"),
    "an object as crop": ({"pretrained_cfg": {"crop_mode": {"a": 1}}}, r"crop_mode=\{'a': 1\}"),
    "a true classifier": ({"pretrained_cfg": {"classifier": True}}, r"classifier=True: expected the name"),
    "a negative classifier": ({"pretrained_cfg": {"classifier": -1}}, r"classifier=-1: expected the name"),
    "numbers as classifiers": ({"pretrained_cfg": {"classifier": [2.5]}}, r"classifier=\[2\.5\]: expected the name"),
    "no number": ({"pretrained_cfg": {"std": ["a"]}}, r"mean, std or crop_pct"),
    "zeros": ({"pretrained_cfg": {"std": [0, 0, 0]}}, r"three finite numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hostile_config_of_timm_is_refused_by_name(fault: str, tmp_path: Path):
    name, arguments = TIMM["vit"]
    timm.models.save_for_hf(
        timm.create_model(name, **arguments), str(tmp_path), model_args=arguments, safe_serialization=True
    )
    config = json.loads((tmp_path / "config.json").read_text())
    changes, message = FAULTS[fault]
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        openslip.load(tmp_path)


def test_choices_must_agree_with_a_folder_of_timm(tmp_path: Path):
    timm.models.save_for_hf(timm.create_model("vit_tiny_patch16_224"), str(tmp_path), safe_serialization=True)
    openslip.load(tmp_path, image_heads=3, activation="gelu")
    contradictions: list[tuple[dict[str, Any], str]] = [
        ({"image_heads": 4}, "image_heads=4: the file says 3"),
        ({"text_heads": 4}, "text_heads=4: the file says none"),
        ({"activation": "quickgelu"}, "activation=quickgelu: the file says gelu"),
    ]
    for choices, says in contradictions:
        with pytest.raises(UserError, match=says):
            openslip.load(tmp_path, **choices)


def test_exchanged_weights_of_timm_are_refused(tmp_path: Path):
    name, arguments = TIMM["vit"]
    timm.models.save_for_hf(
        timm.create_model(name, **arguments), str(tmp_path), model_args=arguments, safe_serialization=True
    )
    weights = load_file(tmp_path / "model.safetensors")
    weights["blocks.0.norm3.weight"] = weights.pop("blocks.0.norm1.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing: .*norm1\.weight; 1 unexpected: .*norm3\.weight"):
        openslip.load(tmp_path)
