"""Decoding, training crops and the evaluation transform, against torchvision and the recorded published transform."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from shard_files import jpeg

from openslip.data.augment import Augment
from openslip.data.views import EvalTransform, View, open_image, random_box
from openslip.errors import UserError

T: Any = torchvision.transforms  # its types know of tensors only
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
DATA = Path(__file__).parents[1] / "data"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, picture_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, picture_format, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size; its pixels are missing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 999) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + data


def test_the_evaluation_transform_is_the_recorded_published_one():
    x, y = np.arange(402)[None, :], np.arange(301)[:, None]
    channels = [x * 255 / 401 + 0 * y, y * 255 / 300 + 0 * x, 127 + 127 * np.sin(x / 9) * np.cos(y / 7)]
    image = Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))
    result = EvalTransform(size=224, mean=MEAN, std=STD)(image).numpy()
    recorded = np.load(DATA / "eval_transform.npz")
    assert np.abs(result[:, ::37, ::29] - recorded["rows"]).max() <= 1e-6
    assert np.abs(result.mean(axis=(1, 2)) - recorded["mean"]).max() <= 1e-6
    assert np.abs(result.std(axis=(1, 2), ddof=1) - recorded["std"]).max() <= 1e-5


@pytest.mark.parametrize("width", [31, 32, 33, 40, 95])
@pytest.mark.parametrize("height", [31, 32, 47, 90])
def test_the_evaluation_transform_is_torchvisions(width: int, height: int):
    theirs = T.Compose([T.Resize(32), T.CenterCrop(32), T.ToTensor(), T.Normalize(MEAN, STD)])
    image = picture(width, height)
    result = EvalTransform(size=32, mean=MEAN, std=STD)(image)
    assert result.is_contiguous()
    torch.testing.assert_close(result, theirs(image), atol=1e-6, rtol=0)


def test_the_settings_of_the_evaluation_transform_make_it_again():
    transform = EvalTransform(size=20, mean=MEAN, std=STD)
    again = EvalTransform(**transform.settings())  # pyright: ignore[reportArgumentType]
    assert torch.equal(again(picture(30, 40)), transform(picture(30, 40)))


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0)])
@pytest.mark.parametrize("shape", [(40, 40), (120, 50), (33, 77), (500, 3), (3, 500)])
def test_a_crop_is_torchvisions_at_the_same_box(scale: tuple[float, float], shape: tuple[int, int]):
    image, view = picture(*shape), View(size=32, scale=scale, augment=None)
    for seed in range(5):
        left, top, right, bottom = random_box(*shape, scale, np.random.default_rng(seed))
        pixels, parameters = view(image, np.random.default_rng(seed))
        expected = T.functional.resized_crop(
            image, top, left, bottom - top, right - left, [32, 32], T.InterpolationMode.BILINEAR
        )
        assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(expected))
        assert parameters is None


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 1.0)])
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
    class Two(Augment):
        def draw(self, rng: np.random.Generator) -> np.ndarray:
            return rng.random(2).astype(np.float32)

        def __call__(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
            return images

    _, parameters = View(size=8, scale=[0.5, 1.0], augment=Two())(picture(20, 20), np.random.default_rng(0))
    assert parameters is not None
    assert parameters.shape == (2,)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.5)])
def test_an_impossible_scale_is_named(scale: tuple[float, float]):
    with pytest.raises(UserError, match="view scale="):
        View(size=8, scale=scale, augment=None)


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_usual_formats_open_as_rgb(picture_format: str, tmp_path: Path):
    image = picture(20, 30)
    data = encoded(image, picture_format)
    path = tmp_path / "file"
    path.write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for source in (data, path, str(path)):
        opened = open_image(source, "x")
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), expected)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK"])
def test_every_mode_becomes_rgb(mode: str):
    image = picture(20, 30).convert(mode)
    opened = open_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG"), "x")
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), np.asarray(image.convert("RGB")))


def test_a_transparent_palette_and_16_bits_become_rgb():
    palette = picture(20, 30).convert("P")
    opened = open_image(encoded(palette, "PNG", transparency=bytes(range(256))), "x")
    assert np.array_equal(np.asarray(opened), np.asarray(palette.convert("RGB")))
    deep = Image.fromarray(np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30))
    values = np.asarray(open_image(encoded(deep, "PNG"), "x"))[..., 0].ravel()
    assert np.abs(values - np.linspace(0, 255, 600)).max() <= 1


@pytest.mark.parametrize(
    "data",
    [jpeg(0)[:400], jpeg(0)[:-60], b"", b"<html>not found</html>", jpeg(0)[:20] + b"\0" * 300, png_header(20, 20)],
    ids=["half", "end missing", "nothing", "html", "zeros", "header alone"],
)
def test_damaged_pictures_are_named(data: bytes):
    with pytest.raises(UserError, match=r"^shard\.tar:key: cannot be decoded \(.+\); replace or remove it$"):
        open_image(data, "shard.tar:key")


def test_a_missing_picture_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"cat\.jpg: cannot be decoded \(.*No such file"):
        open_image(tmp_path / "cat.jpg", "cat.jpg")


@pytest.mark.parametrize("side", [7072, 9000, 14_000, 60_000])
def test_large_pictures_are_refused_before_they_are_decoded(side: int):
    tracemalloc.start()
    with pytest.raises(UserError, match=r"^bomb: .* 50,000,000 pixels are refused"):
        open_image(png_header(side, side), "bomb")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_programs_are_never_run_to_decode_a_picture():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(UserError, match="not a picture in one of the formats"):
        open_image(postscript, "x.eps")
