"""Images as callers have them: files, PIL images, arrays, tensors; and labels that are independent of each other."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder
from PIL import Image

from openslip.data.image.decode import open_image
from openslip.errors import UserError
from openslip.inference.classifier import ZeroShotClassifier

ARRAY = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(ARRAY).permute(2, 0, 1)
LABELS = ["cat", "dog", "red fox"]


@pytest.mark.parametrize(
    "image",
    [
        ARRAY,
        np.asfortranarray(ARRAY),
        TENSOR,
        TENSOR.contiguous(),
        TENSOR.float() / 255,
        TENSOR.double() / 255,
        (TENSOR.float() / 255).requires_grad_(),
    ],
)
def test_arrays_and_tensors_are_the_pixels_that_they_hold(image: Any):
    model = bundle(dual_encoder())
    expected = model.encode_image([Image.fromarray(ARRAY)])
    assert torch.equal(model.encode_image([image]), expected)
    classify = ZeroShotClassifier(model, LABELS)
    assert classify(image) == classify(Image.fromarray(ARRAY))
    stack = np.stack([image, image]) if isinstance(image, np.ndarray) else torch.stack([image, image])
    assert classify(stack) == classify([image, image]) == classify([Image.fromarray(ARRAY)] * 2)


def test_a_stacked_uint8_batch_is_its_images():
    model = bundle(dual_encoder())
    expected = model.encode_image([ARRAY, ARRAY])
    assert torch.equal(model.encode_image(torch.stack([TENSOR, TENSOR])), expected)
    assert torch.equal(model.encode_image(np.stack([ARRAY, ARRAY])), expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (ARRAY[..., 0], r"shape \[20, 30\] and type uint8: an array of an image is uint8 \[height, width, 3\]"),
        (ARRAY.transpose(2, 0, 1), r"shape \[3, 20, 30\] .*transpose it: image.transpose\(1, 2, 0\)"),
        (ARRAY.astype(np.float32) / 255, "type float32: an array of an image is uint8"),
        (ARRAY.astype(np.int64), "type int64"),
        (ARRAY[:0], r"shape \[0, 30, 3\]"),
        (np.concatenate([ARRAY, ARRAY[..., :1]], axis=2), r"shape \[20, 30, 4\]"),
        (TENSOR.permute(1, 2, 0), r"shape \[20, 30, 3\] .*permute it: image.permute\(2, 0, 1\)"),
        (TENSOR[0], r"shape \[20, 30\]"),
        (TENSOR.float(), "values from 0 to 255: .*floats from 0 to 1; normalised"),
        (TENSOR.float() / 127.5 - 1, "values from -1 to 1"),
        (TENSOR.long(), "type int64"),
        (TENSOR > 9, "type bool"),
        (torch.full((3, 8, 8), math.nan), "values from nan to nan"),
    ],
)
def test_another_shape_type_or_range_is_refused(image: Any, message: str):
    model = bundle(dual_encoder())
    for attempt in (lambda: ZeroShotClassifier(model, LABELS)(image), lambda: model.encode_image([image])):
        with pytest.raises(UserError, match=message):
            attempt()


@pytest.mark.parametrize("image", [ARRAY, TENSOR, TENSOR.float() / 255, Image.fromarray(ARRAY)])
def test_one_image_gives_one_row_of_features(image: Any):
    model = bundle(dual_encoder())
    assert torch.equal(model.encode_image(image), model.encode_image([image]))


@pytest.mark.parametrize(
    "batch", [torch.rand(2, 3, 17, 17), torch.rand(2, 1, 16, 16), torch.full((2, 3, 16, 16), math.inf)]
)
def test_a_stacked_tensor_of_another_size_is_refused(batch: torch.Tensor):
    with pytest.raises(UserError, match=r"expected finite floats \[images, 3, 16, 16\] as bundle.transform makes them"):
        bundle(dual_encoder()).encode_image(batch)


def test_a_pil_image_of_a_truncated_file_is_refused_by_name(tmp_path: Path):
    stream = io.BytesIO()
    Image.fromarray(np.kron(ARRAY, np.ones((8, 8, 1), np.uint8))).save(stream, "JPEG")
    (tmp_path / "half.jpg").write_bytes(stream.getvalue()[:4000])
    model = bundle(dual_encoder())
    with Image.open(tmp_path / "half.jpg") as image, pytest.raises(UserError, match=r"half\.jpg: cannot be decoded"):
        model.encode_image([image])
    with pytest.raises(UserError, match="PIL image: cannot be decoded"):
        ZeroShotClassifier(model, LABELS)(Image.open(io.BytesIO(stream.getvalue()[:4000])))


def test_a_pil_image_without_pixels_is_refused():
    with pytest.raises(UserError, match="PIL image: 0 x 5, no pixels"):
        bundle(dual_encoder()).encode_image([Image.new("RGB", (0, 5))])


def test_a_pil_image_has_the_colours_of_its_file(tmp_path: Path):
    Image.fromarray((np.arange(400, dtype=np.uint16) * 160).reshape(20, 20)).save(tmp_path / "deep.png")
    model = bundle(dual_encoder())
    with Image.open(tmp_path / "deep.png") as image:
        assert torch.equal(model.encode_image([image]), model.encode_image([open_image(tmp_path / "deep.png", "")]))


def test_sigmoid_probabilities_are_those_of_the_formula():
    encoder = dual_encoder()
    encoder.logit_bias = torch.nn.Parameter(torch.tensor(-1.5))
    model, file = bundle(encoder), Pictures(1)[0].image
    ranking = ZeroShotClassifier(model, LABELS, ["a {}."], probabilities="sigmoid")(file)
    cosines = model.similarity([file], [f"a {label}." for label in LABELS])[0].tolist()
    scale = math.exp(encoder.logit_scale.item())
    expected = {label: 1 / (1 + math.exp(1.5 - scale * cosine)) for label, cosine in zip(LABELS, cosines, strict=True)}
    assert dict(ranking) == pytest.approx(expected, abs=1e-5)  # pyright: ignore
    assert [label for label, _ in ranking] == sorted(LABELS, key=lambda label: -expected[label])
    assert sum(expected.values()) != pytest.approx(1, abs=0.01)
    softmax = ZeroShotClassifier(model, LABELS, ["a {}."])(file)
    assert sum(dict(softmax).values()) == pytest.approx(1)  # pyright: ignore


def test_sigmoid_probabilities_need_a_bias():
    with pytest.raises(UserError, match=r"need a model with a logit_bias, .*; DualEncoder has none: use softmax"):
        ZeroShotClassifier(bundle(dual_encoder()), LABELS, probabilities="sigmoid")
    with pytest.raises(UserError, match="probabilities=tanh: expected softmax or sigmoid"):
        ZeroShotClassifier(bundle(dual_encoder()), LABELS, probabilities="tanh")


def test_hugging_faces_names_are_other_names_of_ours():
    model = bundle(dual_encoder())
    ours = ZeroShotClassifier(model, LABELS, "a {}.")(ARRAY)
    assert ZeroShotClassifier(model, candidate_labels=LABELS, hypothesis_template="a {}.")(ARRAY) == ours
    assert ZeroShotClassifier(model, labels=LABELS, templates={"a {}."})(ARRAY) == ours
    calls: list[tuple[dict[str, Any], str]] = [
        ({"labels": LABELS, "candidate_labels": LABELS}, "labels and candidate_labels are two names of the same"),
        ({"labels": LABELS, "templates": "a {}.", "hypothesis_template": "a {}."}, "templates and hypothesis_template"),
        ({}, "labels are missing"),
    ]
    for arguments, message in calls:
        with pytest.raises(UserError, match=message):
            ZeroShotClassifier(model, **arguments)


@pytest.mark.parametrize("probabilities", ["softmax", "sigmoid"])
def test_an_image_that_fits_no_label_has_an_empty_ranking(probabilities: str, capsys: pytest.CaptureFixture[str]):
    model = bundle(dual_encoder())
    model.model.logit_bias = torch.nn.Parameter(torch.tensor(-1.0))
    images = [ARRAY, 255 - ARRAY, ARRAY // 2]
    rankings: Any = ZeroShotClassifier(model, LABELS, probabilities=probabilities)(images)
    best = [ranking[0][1] for ranking in rankings]
    for threshold in (min(best), max(best), sum(best) / 3, 1.0):
        kept = ZeroShotClassifier(model, LABELS, probabilities=probabilities, reject=threshold)(images)
        assert kept == [ranking if p >= threshold else [] for ranking, p in zip(rankings, best, strict=True)]
    assert capsys.readouterr().err == ""
    assert ZeroShotClassifier(model, LABELS, probabilities=probabilities, reject=1.0)(ARRAY) == []


def test_a_threshold_that_rejects_nothing_is_said(capsys: pytest.CaptureFixture[str]):
    model = bundle(dual_encoder())
    ZeroShotClassifier(model, LABELS, reject=0.3)
    assert capsys.readouterr().err == (
        "reject=0.3 rejects nothing: the most probable of 3 labels always has a probability of at least 0.333\n"
    )
    for reject in (-0.1, 50):
        with pytest.raises(UserError, match=f"reject={reject}: expected a probability from 0 to 1"):
            ZeroShotClassifier(model, LABELS, reject=reject)


def test_gradients_reach_the_image_and_no_weight():
    model = bundle(dual_encoder().double())
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 12, dtype=torch.float64)
    trainable = [weight.requires_grad for weight in model.model.parameters()]
    assert all(trainable)

    def loss(images: torch.Tensor, **options: bool) -> torch.Tensor:
        return (model.encode_image(images, **options) * target).sum()

    loss(images, gradients=True).backward()
    assert images.grad is not None
    for place in ((0, 0, 0, 0), (1, 2, 7, 9)):  # against central differences
        step = torch.zeros_like(images)
        step[place] = 1e-6
        with torch.no_grad():
            slope = (loss(images + step) - loss(images - step)) / 2e-6
        torch.testing.assert_close(images.grad[place], slope, rtol=1e-5, atol=1e-9)
    assert all(weight.grad is None for weight in model.model.parameters())
    assert [weight.requires_grad for weight in model.model.parameters()] == trainable
    assert torch.equal(model.encode_image(images), model.encode_image(images, gradients=True))
    assert not model.encode_image(images).requires_grad


@pytest.mark.parametrize("images", [[ARRAY], TENSOR.float() / 255, torch.stack([TENSOR]), ARRAY])
def test_gradients_need_the_stacked_float_tensor(images: Any):
    with pytest.raises(UserError, match=r"gradients=True: expected finite floats \[images, 3, 16, 16\] as bundle"):
        bundle(dual_encoder()).encode_image(images, gradients=True)
