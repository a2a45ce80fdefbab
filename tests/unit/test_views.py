"""Training crops and the evaluation transform, against torchvision and the recorded published transform."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from open_clip.transform import image_transform
from PIL import Image
from published import simclr_augment
from torch import Tensor
from views import MEAN, STD, crop_view, drawn

from openslip.data.image import crop
from openslip.data.image.augment import SimCLRAugment, normalise
from openslip.data.image.crop import RandomResizedCrop, random_box
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.view import Columns
from openslip.errors import UserError
from openslip.inference.formats.openslip import build_transform
from openslip.verify.files import RECORDINGS, read_arrays

T: Any = torchvision.transforms  # its types know of tensors only


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def test_the_evaluation_transform_is_the_recorded_published_one():
    x, y = np.arange(402)[None, :], np.arange(301)[:, None]
    channels = [x * 255 / 401 + 0 * y, y * 255 / 300 + 0 * x, 127 + 127 * np.sin(x / 9) * np.cos(y / 7)]
    image = Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))
    result = EvalTransform(size=224, mean=MEAN, std=STD)(image).numpy()
    recorded = read_arrays(RECORDINGS / "zero_shot.npz")
    assert np.abs(result[:, ::37, ::29] - recorded["eval_transform_rows"]).max() <= 1e-6
    assert np.abs(result.mean(axis=(1, 2)) - recorded["eval_transform_mean"]).max() <= 1e-6
    assert np.abs(result.std(axis=(1, 2), ddof=1) - recorded["eval_transform_std"]).max() <= 1e-5


@pytest.mark.parametrize("width", [31, 32, 33, 40, 95])
@pytest.mark.parametrize("height", [31, 32, 47, 90])
def test_the_evaluation_transform_is_torchvisions(width: int, height: int):
    theirs = T.Compose([T.Resize(32), T.CenterCrop(32), T.ToTensor(), T.Normalize(MEAN, STD)])
    image = picture(width, height)
    result = EvalTransform(size=32, mean=MEAN, std=STD)(image)
    assert result.is_contiguous()
    torch.testing.assert_close(result, theirs(image), atol=1e-6, rtol=0)


INTERPOLATIONS = {"bilinear": T.InterpolationMode.BILINEAR, "bicubic": T.InterpolationMode.BICUBIC}


@pytest.mark.parametrize("size", [(31, 90), (33, 47), (40, 40), (95, 31), (300, 7), (6, 500)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize_to", [None, 32, 37, 64])
def test_the_shorter_side_is_resized_as_by_torchvision(
    size: tuple[int, int], interpolation: str, resize_to: int | None
):
    resize = T.Resize(resize_to or 32, INTERPOLATIONS[interpolation])
    theirs = T.Compose([resize, T.CenterCrop(32), T.ToTensor(), T.Normalize(MEAN, STD)])
    ours = EvalTransform(size=32, mean=MEAN, std=STD, interpolation=interpolation, resize_to=resize_to)
    torch.testing.assert_close(ours(picture(*size)), theirs(picture(*size)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(31, 90), (33, 47), (40, 40), (95, 31), (300, 7), (10, 100), (16, 15)])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_the_resize_modes_are_open_clips(size: tuple[int, int], interpolation: str, resize: str):
    theirs: Any = image_transform(
        32, is_train=False, mean=tuple(MEAN), std=tuple(STD), resize_mode=resize, interpolation=interpolation
    )
    ours = EvalTransform(size=32, mean=MEAN, std=STD, interpolation=interpolation, resize=resize)
    torch.testing.assert_close(ours(picture(*size)), theirs(picture(*size)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1)])
def test_a_line_of_pixels_is_padded_to_a_square(size: tuple[int, int]):
    transform = EvalTransform(size=32, mean=[0.0] * 3, std=[1.0] * 3, resize="longest")
    result = transform(Image.new("RGB", size, "white"))
    assert result.sum() == 3 * 32
    assert result[:, 15, :].sum() + result[:, :, 15].sum() == 3 * 32 + 3


SETTINGS = [
    {},
    {"interpolation": "bicubic"},
    {"resize": "squash"},
    {"resize": "longest"},
    {"resize_to": 23},
    {"crop": "floor"},
]


@pytest.mark.parametrize("changed", SETTINGS)
def test_the_settings_of_the_evaluation_transform_make_it_again(changed: dict[str, Any]):
    transform = EvalTransform(size=20, mean=MEAN, std=STD, **changed)
    assert transform.settings() == {"size": 20, "mean": MEAN, "std": STD} | changed
    again = build_transform(Path("model.ckpt"), transform.settings())
    image = picture(30, 35)  # three rows are cut off: one and a half at each end
    assert torch.equal(again(image), transform(image))
    if changed:
        assert not torch.equal(transform(image), EvalTransform(size=20, mean=MEAN, std=STD)(image))


@pytest.mark.parametrize(
    "changed",
    [
        {"interpolation": "nearest"},
        {"interpolation": ["bilinear"]},
        {"resize": "stretch"},
        {"resize": None},
        {"resize_to": 19},
        {"resize_to": "24"},
        {"resize_to": 24.0},
        {"resize_to": 1_000_000},
        {"resize_to": 24, "resize": "squash"},
        {"crop": True},
        {"crop": "ceil"},
        {"centre": True},
    ],
)
def test_unknown_settings_of_a_stored_transform_are_refused(changed: dict[str, Any]):
    with pytest.raises(UserError, match=r"^interpolation=|^resize=|^resize_to=|^crop=|its `transform` is"):
        build_transform(Path("model.ckpt"), {"size": 20, "mean": MEAN, "std": STD} | changed)


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0)])
@pytest.mark.parametrize("shape", [(40, 40), (120, 50), (33, 77), (500, 3), (3, 500)])
def test_a_crop_is_torchvisions_at_the_same_box(scale: tuple[float, float], shape: tuple[int, int]):
    image, view = picture(*shape), crop_view(32, scale)
    for seed in range(5):
        left, top, right, bottom = random_box(*shape, scale, np.random.default_rng(seed))
        columns = drawn(view, image, np.random.default_rng(seed))
        expected = T.functional.resized_crop(
            image, top, left, bottom - top, right - left, [32, 32], T.InterpolationMode.BILINEAR
        )
        assert columns.keys() == {""}
        assert np.array_equal(columns[""].transpose(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0), (0.2, 0.5)])
@pytest.mark.parametrize("shape", [(100, 80), (300, 100)])
def test_boxes_have_torchvisions_distribution(scale: tuple[float, float], shape: tuple[int, int]):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    image = Image.new("RGB", shape)
    ours, theirs = [], []
    for _ in range(4000):
        left, top, right, bottom = random_box(*shape, scale, rng)
        assert 0 <= left < right <= shape[0]
        assert 0 <= top < bottom <= shape[1]
        ours.append((left, top, right - left, bottom - top))
        top, left, height, width = T.RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3))
        theirs.append((left, top, width, height))
    for columns in (
        lambda box: box,
        lambda box: np.log(box[:, 2] / box[:, 3])[:, None],
        lambda box: (box[:, 2] * box[:, 3])[:, None],
    ):
        a, b = columns(np.array(ours)), columns(np.array(theirs))
        for column in range(a.shape[1]):
            assert kolmogorov_smirnov(a[:, column], b[:, column]) < 0.0436  # p = 0.001 at 2 x 4000


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """Greatest distance of the two empirical distributions."""
    points = np.concatenate([a, b])
    share = (np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (a, b))
    return float(np.abs(np.subtract(*share)).max())


@pytest.mark.parametrize("shape", [(1000, 2), (2, 1000), (1, 1)])
def test_pictures_that_fit_no_box_are_cut_in_the_middle_as_torchvisions(shape: tuple[int, int]):
    image = Image.new("RGB", shape)
    top, left, height, width = T.RandomResizedCrop.get_params(image, [0.5, 1.0], [3 / 4, 4 / 3])
    box = random_box(*shape, (0.5, 1.0), np.random.default_rng(0))
    assert box == (left, top, left + width, top + height)


def test_what_follows_a_crop_does_not_depend_on_the_pictures_shape():
    after = set()
    for shape in ((40, 40), (1000, 2), (300, 100)):
        rng = np.random.default_rng(0)
        random_box(*shape, (0.08, 1.0), rng)
        after.add(rng.random())
    assert len(after) == 1


def test_parameters_of_the_augmentation_come_with_the_crop():
    columns = drawn(crop_view(8, [0.5, 1.0], simclr_augment()), picture(20, 20), np.random.default_rng(0))
    assert columns["parameters"].shape == (8,)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.5), (0.9,), (0.1, 0.5, 1.0)])
def test_an_impossible_scale_is_named(scale: tuple[float, ...]):
    with pytest.raises(UserError, match=r"^scale="):
        crop_view(8, scale)


def cropped(view: RandomResizedCrop, number: int) -> Columns:
    rng = np.random.default_rng(0)
    return view.collate([drawn(view, picture(90, 70, seed), rng) for seed in range(number)])


def test_a_view_without_augmentation_is_torchvisions_tensor_and_normalisation():
    view = crop_view(32, [0.5, 1.0])
    columns = cropped(view, 5)
    before = columns[""].clone()
    expected = torch.stack([T.Normalize(MEAN, STD)(T.ToTensor()(T.ToPILImage()(image))) for image in before])
    torch.testing.assert_close(view.finish(columns)[""], expected, atol=1e-6, rtol=0)
    assert torch.equal(columns[""], before)


def test_a_finished_view_is_augmented_and_then_normalised():
    view = crop_view(32, [0.08, 1.0], simclr_augment())
    columns = cropped(view, 24)
    expected = normalise(simclr_augment()(columns[""] / 255, columns["parameters"]), MEAN, STD)
    assert torch.equal(view.finish(columns)[""], expected)


def test_a_gpu_finishes_512_images_at_a_time_and_leaves_none_out(monkeypatch: pytest.MonkeyPatch):
    view = crop_view(4, [0.08, 1.0], simclr_augment())
    images = torch.zeros(1100, 3, 4, 4, dtype=torch.uint8, device="meta")  # any device but the CPU
    sizes = []

    def augmented(self: SimCLRAugment, x: Tensor, _: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    monkeypatch.setattr(SimCLRAugment, "__call__", augmented)
    monkeypatch.setattr(crop, "normalise", lambda x, *_, out: out.copy_(x))
    finished = view.finish({"": images, "parameters": torch.zeros(1100, 8)})[""]
    assert (finished.shape, finished.device.type) == (images.shape, "meta")
    assert sizes == [512, 512, 76]


@pytest.mark.parametrize("size", [30, 32, 224])
def test_not_a_bit_of_a_finished_sample_depends_on_its_batch(size: int):
    view = crop_view(size, [0.08, 1.0], simclr_augment())
    columns = cropped(view, 64 if size < 100 else 12)
    together = view.finish(columns)[""]
    for length in (1, 3, len(together) // 2):
        parts = zip(columns[""].split(length), columns["parameters"].split(length), strict=True)
        finished = [view.finish({"": images, "parameters": parameters})[""] for images, parameters in parts]
        assert torch.equal(torch.cat(finished), together)
    order = torch.randperm(len(together), generator=torch.Generator().manual_seed(0))
    assert torch.equal(view.finish({key: column[order] for key, column in columns.items()})[""], together[order])
