"""Zero-shot on the built-in test set: every library predicts of each image what OpenSLIP predicts of it."""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported_models import bundle_of, written
from PIL import Image
from torch import Tensor

from openslip.data.source import Source
from openslip.data.sources import builtin
from openslip.evaluation.zeroshot import ZeroShot
from openslip.export import forms
from openslip.export.check import LIMIT
from openslip.inference.bundle import Bundle

# timm has no texts: its features of images are compared with our features of texts.
FORMS = {
    "clip": ("safetensors", "open_clip", "huggingface", "timm", "onnx"),
    "slip": ("safetensors", "huggingface", "timm", "onnx"),
    "siglip": ("safetensors", "open_clip", "huggingface", "timm", "onnx"),
    "clip_resnet": ("safetensors", "open_clip", "onnx"),
    "test_vit": ("safetensors", "open_clip", "huggingface", "timm", "onnx"),
    "resnet": ("safetensors", "huggingface", "timm", "onnx"),
}
CASES = [(model, form) for model, names in FORMS.items() for form in names]
FAST = [  # a graph for ONNX takes seconds
    *(("clip", form) for form in ("open_clip", "huggingface", "onnx")),
    *(("siglip", form) for form in ("open_clip", "huggingface")),
    ("slip", "huggingface"),
    ("test_vit", "open_clip"),
    ("clip_resnet", "open_clip"),
]
TEMPLATES = ["a {}.", "a photo of a {}.", "this is a {}."]
FEW = 64
Exported = Callable[[str, str], tuple[Bundle, Path]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Draw the whole test set, and little of the other splits, which takes most of the time."""
    with patch.dict(builtin.NUM_IMAGES, train=1, seen=1):
        return builtin.builtin(str(tmp_path_factory.mktemp("data")), "unseen")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, source: Source) -> Exported:
    @functools.cache
    def model(name: str) -> Bundle:
        bundle = bundle_of(name)
        if name == "clip_resnet":  # its features of all images have nearly the same direction
            images = torch.stack([bundle.transform(image) for image in images_of(source, FEW)])
            with torch.no_grad():
                bundle.model.image_tower.pool.c_proj.bias -= bundle.model.encode_image(images).mean(dim=0)
        return bundle

    @functools.cache
    def export(name: str, form: str) -> tuple[Bundle, Path]:
        return model(name), written(model(name), tmp_path_factory.mktemp("export"), form)

    return export


def scale_and_bias(bundle: Bundle) -> tuple[float, float]:
    return float(bundle.scale()), 0.0 if bundle.model.logit_bias is None else float(bundle.bias())


def ours(bundle: Bundle, images: list[Image.Image], texts: list[str]) -> tuple[Tensor, Tensor]:
    return bundle.encode_image(torch.stack([bundle.transform(image) for image in images])), bundle.encode_text(texts)


def theirs(bundle: Bundle, folder: Path, form: str, images: list[Image.Image], texts: list[str]) -> Any:
    """Return unit features as a form's own library computes them, its factor and its bias."""
    library = forms.load(form).read(folder)
    prepared = [library.pixels(images[start : start + 64]) for start in range(0, len(images), 64)]
    image_features = F.normalize(torch.from_numpy(library.image_features(np.concatenate(prepared))), dim=1)
    if library.text_features is None:
        assert form == "timm"
        return image_features, bundle.encode_text(texts), *scale_and_bias(bundle)
    text_features = F.normalize(torch.from_numpy(library.text_features(library.ids(texts))), dim=1)
    return image_features, text_features, library.logit_scale, library.logit_bias or 0.0


def logits(images: Tensor, texts: Tensor, scale: float, bias: float) -> Tensor:
    """Return logits of images and classes, [image, class], for prompts of all templates in turn."""
    classes = F.normalize(texts.unflatten(0, (-1, len(builtin.classnames()))).mean(dim=0), dim=1)
    return scale * images @ classes.T + bias


def compare(exported: tuple[Bundle, Path], form: str, images: list[Image.Image], templates: list[str]) -> Tensor:
    """Return our predictions, which are theirs; no logit may differ by more than the check allows for features."""
    bundle, folder = exported
    texts = [template.format(name) for template in templates for name in builtin.classnames()]
    expected = logits(*ours(bundle, images, texts), *scale_and_bias(bundle))
    computed = logits(*theirs(bundle, folder, form, images, texts))
    predicted = expected.argmax(dim=1)
    assert len(predicted.unique()) > 1
    assert torch.equal(computed.argmax(dim=1), predicted)
    assert (computed - expected).abs().max() <= bundle.scale() * LIMIT
    return predicted


def images_of(source: Source, count: int) -> list[Image.Image]:
    return [Image.open(io.BytesIO(source[number].image)) for number in range(count)]


@pytest.mark.parametrize(("model", "form"), FAST)
def test_the_first_images_are_classified_the_same(model: str, form: str, source: Source, exported: Exported) -> None:
    compare(exported(model, form), form, images_of(source, FEW), TEMPLATES[:1])


@pytest.mark.slow
@pytest.mark.parametrize(("model", "form"), CASES)
def test_every_image_is_classified_the_same_as_by_our_evaluation(
    model: str, form: str, source: Source, exported: Exported
) -> None:
    evaluation = ZeroShot(
        title="zero-shot", source=source, classnames=None, templates=TEMPLATES, batch_size=256, num_workers=0
    )
    evaluation.run(exported(model, form)[0])
    predicted = compare(exported(model, form), form, images_of(source, len(source)), TEMPLATES)
    assert np.array_equal(predicted.numpy(), evaluation.arrays["predictions"])
