"""Images that conversion re-encodes: bit depth, transparency, orientation, and strips."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import left_out, run, samples_of
from PIL import Image, ImageOps
from shard_files import jpeg

from openslip.data.convert.image import UnusableError, convert_image
from openslip.data.image.decode import PillowDecoder, TurboDecoder
from openslip.errors import UserError


def encoded(image: Image.Image, picture_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, picture_format, **options)
    return file.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("resize", [None, 20])
def test_16_bit_images_are_scaled_and_others_of_unknown_range_left_out_by_name(resize: int | None):
    levels = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    for data in (encoded(Image.fromarray(levels), "TIFF"), encoded(Image.fromarray(levels), "PPM")):
        pixels = pixels_of(convert_image(data, resize)[1])
        assert (pixels.min(), pixels.max()) == (pytest.approx(0, abs=8), pytest.approx(255, abs=8))
        assert pixels.mean() == pytest.approx(127.5, abs=2)
    for dtype, reason in ((np.float32, "floating-point pixels"), (np.int32, "32-bit integer pixels")):
        with pytest.raises(UnusableError, match=rf"^{reason} \(mode .\), whose black and white are not known$"):
            convert_image(encoded(Image.fromarray(levels.astype(dtype)), "TIFF"), resize)


@pytest.mark.parametrize(("picture_format", "resize"), [("PNG", 20), ("TIFF", None), ("GIF", None), ("WEBP", 20)])
def test_transparent_images_that_become_jpegs_lie_on_white_unless_told_otherwise(
    picture_format: str, resize: int | None
):
    drawing = Image.new("RGBA", (40, 40))
    drawing.paste((0, 0, 0, 255), (0, 0, 40, 8))
    data = encoded(drawing, picture_format)
    suffix, on_white = convert_image(data, resize)
    assert suffix == "jpg"
    assert pixels_of(on_white)[-5:].min() > 250
    assert pixels_of(on_white)[0].max() < 10
    assert pixels_of(convert_image(data, resize, "ignore")[1]).max() < 10


def test_transparent_images_that_are_not_resized_keep_their_bytes():
    data = encoded(Image.new("RGBA", (40, 40)), "PNG")
    assert convert_image(data, None) == convert_image(data, 40) == ("png", data)


@pytest.mark.parametrize("value", range(1, 9))
def test_the_orientation_outlives_resizing_so_that_training_decides(value: int):
    halves = np.zeros((48, 96, 3), np.uint8)
    halves[:, :48, 0] = halves[:, 48:, 2] = halves[:8, :, 1] = 255
    exif = Image.Exif()
    exif[274] = value
    exif[271] = "a maker, who is not carried over"
    original = encoded(Image.fromarray(halves), "JPEG", exif=exif, quality=95)
    _, resized = convert_image(original, 24)
    stored = Image.open(io.BytesIO(resized))
    assert stored.size == (48, 24)
    assert dict(stored.getexif()) == ({} if value == 1 else {274: value})
    for decoder in (PillowDecoder, TurboDecoder):
        for exif_setting, expected in (("ignore", stored), ("apply", ImageOps.exif_transpose(stored))):
            decoded: Any = decoder(exif=exif_setting).decode(resized, "x")
            assert np.array_equal(np.asarray(decoded), np.asarray(expected.convert("RGB")))
    # Converted and then turned is turned and then converted.
    turned_first = ImageOps.exif_transpose(Image.open(io.BytesIO(original)))
    turned_first = pixels_of(convert_image(encoded(turned_first, "PNG"), 24)[1])
    turned_last: Any = PillowDecoder(exif="apply").decode(resized, "x")
    assert np.abs(np.asarray(turned_last) - turned_first).mean() < 3


def test_images_that_become_jpegs_keep_the_colour_of_each_pixel():
    lines = np.zeros((32, 32, 3), np.uint8)
    lines[:, ::2, 0] = lines[:, 1::2, 2] = 200  # red and blue, one pixel wide
    _, stored = convert_image(encoded(Image.fromarray(lines), "BMP"), None)
    assert np.abs(pixels_of(stored) - lines).max() < 10


def test_a_jpeg_that_becomes_eight_times_smaller_is_pillows():
    squares = np.kron(np.random.default_rng(0).integers(0, 2, (16, 16)) * 255, np.ones((16, 16))).astype(np.uint8)
    original = encoded(Image.fromarray(squares), "JPEG", quality=95)
    expected = Image.open(io.BytesIO(original)).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    _, resized = convert_image(original, 32)
    assert np.abs(pixels_of(resized) - np.asarray(expected)).mean() < 6  # 3; with a decoder's own scaling alone, 16


@pytest.mark.parametrize("size", [(1, 400_000), (400_000, 1), (300, 80_000)])
def test_strips_that_no_jpeg_can_hold_are_left_out_by_name(size: tuple[int, int]):
    data = encoded(Image.new("L", size), "TIFF", compression="tiff_deflate")
    with pytest.raises(UnusableError, match="65,500 pixels in a row or column, which a JPEG cannot hold"):
        convert_image(data, 256)
    as_png = encoded(Image.new("L", size), "PNG")
    if min(size) == 1:
        assert convert_image(as_png, 256) == ("png", as_png)


def test_the_manifest_says_what_lies_under_transparent_images(tmp_path: Path):
    (tmp_path / "in" / "class").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "in" / "class" / f"{number}.jpg").write_bytes(jpeg(number))
    out = tmp_path / "out"
    run("image_folder", tmp_path / "in", out)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["transparency"] == "white"
    with pytest.raises(UserError, match="transparency='white', this command has transparency='ignore'"):
        run("image_folder", tmp_path / "in", out, transparency="ignore")


def test_float_images_of_a_dataset_are_counted_by_their_reason(tmp_path: Path):
    (tmp_path / "in" / "class").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "in" / "class" / f"{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "in" / "class" / "depth.jpg").write_bytes(encoded(Image.new("F", (9, 9)), "TIFF"))
    run("image_folder", tmp_path / "in", tmp_path / "out", samples_per_shard=9)
    assert len(samples_of(tmp_path / "out")) == 3
    assert left_out(tmp_path / "out") == {
        "class/depth": "floating-point pixels (mode F), whose black and white are not known"
    }
