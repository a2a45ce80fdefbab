"""Exports of a full-size model, confirmed by fresh processes, and their zero-shot predictions."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported_models import TEXT, bundle_of
from PIL import Image

import openslip
from openslip.commands.export import main
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.sources import builtin
from openslip.evaluation.zeroshot import ZeroShot
from openslip.export import forms
from openslip.export.forms import huggingface
from openslip.inference.bundle import Bundle
from openslip.inference.formats.openslip import write
from openslip.inference.layouts.transforms import OPENAI
from openslip.text.clip_bpe import ClipBpe

RN50 = {"depths": [3, 4, 6, 3], "channels": 64, "width": 1024, "heads": 32}
TEMPLATES = ["a {}.", "a photo of a {}.", "this is a {}."]


def full_size(name: str) -> Bundle:
    """Return CLIP's or SLIP's ViT-B/16, or CLIP's RN50, with drawn weights."""
    tower = {"_target_": "openslip.models.timm_tower.TimmTower", "image_size": 224, "arguments": {}}
    if name == "clip":
        tower |= {"name": "vit_base_patch16_clip_224", "arguments": {"act_layer": "quick_gelu"}, "norm_eps": 1e-5}
    elif name == "slip":
        tower |= {"name": "vit_base_patch16_224"}
    else:
        tower = {"_target_": "openslip.models.clip_resnet.ClipResNet", "image_size": 224, **RN50}
    text = TEXT | {"context_length": 77, "width": 512, "depth": 12, "heads": 8}
    return bundle_of(
        "clip",
        image_tower=tower,
        text_tower=text,
        embed_dim=1024 if name == "resnet" else 512,
        projects_image=name != "resnet",
        tokenizer=ClipBpe(context_length=77, truncation="keep_end", special_text="token"),
        transform=EvalTransform(size=224, **OPENAI),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "slip"])
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
@pytest.mark.parametrize("form", ["open_clip", "timm", "onnx"])
@pytest.mark.parametrize("name", ["clip", "slip", "resnet"])
def test_a_full_size_model_is_confirmed_by_the_library_of_each_form(
    name: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if (name, form) == ("resnet", "timm"):
        pytest.skip("timm has no ResNet of CLIP")
    write(full_size(name), tmp_path / "source.safetensors")
    assert main([str(tmp_path / "source.safetensors"), str(tmp_path / "out"), "--to", form]) == 0
    values = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines()[:-1])
    numbers = {key: float(value) for key, value in values.items() if key != "ids"}
    assert {"pixels", "image_features"} <= numbers.keys()
    assert max(numbers.values()) <= (1e-4 if form == "onnx" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("clip", "huggingface"),
        ("slip", "huggingface"),
        ("siglip", "huggingface"),
        ("clip", "open_clip"),
        ("test_vit", "open_clip"),
        ("clip", "onnx"),
        ("slip", "onnx"),
        ("siglip", "onnx"),
    ],
)
def test_zero_shot_predicts_the_same_class_for_every_image(name: str, form: str, tmp_path: Path):
    bundle = bundle_of(name)
    source = builtin.builtin(str(tmp_path / "data"), "unseen")
    evaluation = ZeroShot(
        title="zero-shot", source=source, classnames=None, templates=TEMPLATES, batch_size=256, num_workers=0
    )
    evaluation.run(bundle)
    forms.load(form).write(bundle, tmp_path)
    library = forms.load(form).read(tmp_path)
    assert library.pixels
    assert library.ids
    assert library.text_features
    images: list[Image.Image] = [Image.open(io.BytesIO(source[number].image)) for number in range(len(source))]
    pixels = np.concatenate([library.pixels(images[start : start + 64]) for start in range(0, len(images), 64)])
    features = F.normalize(torch.from_numpy(library.image_features(pixels)), dim=1)
    names = evaluation.arrays["classnames"].tolist()
    prompts = [
        F.normalize(torch.from_numpy(library.text_features(library.ids([line.format(name) for name in names]))), dim=1)
        for line in TEMPLATES
    ]
    classes = F.normalize(torch.stack(prompts).mean(dim=0), dim=1)
    predicted = (features @ classes.T).argmax(dim=1).numpy()
    assert len(np.unique(predicted)) > 1
    assert np.array_equal(predicted, evaluation.arrays["predictions"])
