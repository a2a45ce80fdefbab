"""Images of every bit depth, transparency and orientation, as both decoders and the evaluation transform see them."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from openslip.data.image.decode import PillowDecoder, TurboDecoder, open_image
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.image.rgb import ToRgb
from openslip.errors import UserError

LEVELS = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
EXPECTED = LEVELS / 257


def encoded(image: Image.Image, picture_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, picture_format, **options)
    return file.getvalue()


def tiff(data: np.ndarray, bits: int, *, photometric: int = 1, sample_format: int = 1, byte_order: str = "<") -> bytes:
    """An uncompressed grey TIFF by hand, for kinds that Pillow reads and does not write."""
    height, width = data.shape
    raw = data.tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: 1, 278: height, 339: sample_format}
    places = {273: 8, 279: len(raw)}
    entries = [
        struct.pack(byte_order + "HHI", tag, 4 if tag in places else 3, 1)
        + (struct.pack(byte_order + "I", value) if tag in places else struct.pack(byte_order + "HH", value, 0))
        for tag, value in sorted((tags | places).items())
    ]
    header = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(byte_order + "I", 8 + len(raw))
    return header + raw + struct.pack(byte_order + "H", len(entries)) + b"".join(entries) + bytes(4)


DEEP = {
    "PNG": encoded(Image.fromarray(LEVELS), "PNG"),
    "PGM": encoded(Image.fromarray(LEVELS), "PPM"),
    "PGM in text": b"P2\n30 20\n65535\n" + " ".join(map(str, LEVELS.ravel().tolist())).encode(),
    "PGM of 1023": b"P5 30 20 1023\n" + np.round(LEVELS / 65535 * 1023).astype(">u2").tobytes(),
    "PPM of 16 bits": b"P6 30 20 65535\n" + np.repeat(LEVELS, 3).astype(">u2").tobytes(),
    "TIFF": encoded(Image.fromarray(LEVELS), "TIFF"),
    "TIFF, compressed": encoded(Image.fromarray(LEVELS), "TIFF", compression="tiff_lzw"),
    "TIFF, big-endian": encoded(Image.fromarray(LEVELS.astype(">u2")), "TIFF"),
    "TIFF, big-endian by hand": tiff(LEVELS.astype(">u2"), 16, byte_order=">"),
    "TIFF, white is zero": tiff(65535 - LEVELS, 16, photometric=0),
}


@pytest.mark.parametrize("file", DEEP)
def test_16_bits_are_scaled_to_8_wherever_they_come_from(file: str):
    for decoder in (PillowDecoder(), TurboDecoder()):
        pixels = np.asarray(decoder.decode(DEEP[file], "x"))
        assert pixels.shape == (20, 30, 3)
        assert np.abs(pixels - EXPECTED[..., None]).max() <= 1.2
    opened = np.asarray(ToRgb()(Image.open(io.BytesIO(DEEP[file]))))
    assert np.array_equal(opened, pixels)


def test_12_bits_of_a_tiff_are_scaled_by_their_own_white():
    values = np.arange(0, 4096, 8).reshape(16, 32)
    first, second = values[:, ::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    data = bytearray(tiff(packed.reshape(16, 48), 12))
    data = data.replace(struct.pack("<HHIHH", 256, 3, 1, 48, 0), struct.pack("<HHIHH", 256, 3, 1, 32, 0))
    pixels = np.asarray(open_image(bytes(data), "x"))[..., 0]
    assert np.abs(pixels - values * 255 / 4095).max() <= 1


UNKNOWN = {
    "32-bit integer TIFF": (encoded(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"), "32-bit integer pixels"),
    "large integers": (tiff(LEVELS.astype("<i4") * 30_000, 32, sample_format=2), "32-bit integer pixels"),
    "signed 16-bit TIFF": (tiff(LEVELS.astype("<i2"), 16, sample_format=2), "32-bit integer pixels"),
    "float TIFF": (encoded(Image.fromarray(EXPECTED.astype(np.float32)), "TIFF"), "floating-point pixels"),
    "float TIFF to 1": (encoded(Image.fromarray((EXPECTED / 255).astype(np.float32)), "TIFF"), "floating-point pixels"),
    "PFM": (b"Pf 30 20 -1.0\n" + EXPECTED.astype("<f4").tobytes(), "floating-point pixels"),
}


@pytest.mark.parametrize("file", UNKNOWN)
def test_pixels_without_a_known_white_are_refused_by_name(file: str):
    data, kind = UNKNOWN[file]
    message = rf"^shard:key: {kind} .*save it with 8 or 16 bits per channel"
    for decoder in (PillowDecoder(), TurboDecoder()):
        with pytest.raises(UserError, match=message):
            decoder.decode(data, "shard:key")
    with pytest.raises(UserError, match=message):
        EvalTransform(size=8, mean=[0.5] * 3, std=[0.5] * 3).read(data, "shard:key")
    with pytest.raises(UserError, match=kind):
        EvalTransform(size=8, mean=[0.5] * 3, std=[0.5] * 3)(Image.open(io.BytesIO(data)))


def drawing(mode: str = "RGBA") -> Image.Image:
    """A black bar on a transparent ground that is black as well, with a half transparent rim."""
    alpha = np.zeros((20, 30), np.uint8)
    alpha[8:12] = 255
    alpha[7] = alpha[12] = 128
    grey = Image.fromarray(np.zeros((20, 30), np.uint8))
    grey.putalpha(Image.fromarray(alpha))
    return grey if mode == "LA" else grey.convert("RGBA").convert(mode)


def palette(transparency: bytes | int) -> bytes:
    indexed = Image.fromarray((np.asarray(drawing())[..., 3] > 200).astype(np.uint8)).convert("P")
    indexed.putpalette([0] * 768)
    return encoded(indexed, "PNG", transparency=transparency)


def keyed(mode: str) -> bytes:
    """Grey 9 is the transparent colour, under a bar of grey 0."""
    grey = Image.fromarray(np.where(np.asarray(drawing())[..., 3] > 200, 0, 9).astype(np.uint8)).convert(mode)
    return encoded(grey, "PNG", transparency=9 if mode == "L" else (9, 9, 9))


def keyed_16_bits() -> bytes:
    levels = np.where(np.asarray(drawing())[..., 3] > 200, 0, 9).astype(np.uint16)
    return encoded(Image.fromarray(levels), "PNG", transparency=9)


TRANSPARENT = {
    "RGBA": encoded(drawing(), "PNG"),
    "LA": encoded(drawing("LA"), "PNG"),
    "WEBP": encoded(drawing(), "WEBP", lossless=True, exact=True),
    "TIFF": encoded(drawing(), "TIFF"),
    "TIFF LA": encoded(drawing("LA"), "TIFF"),
    "P with an index": palette(0),
    "P with bytes": palette(bytes([0, 255])),
    "GIF": encoded(drawing(), "GIF"),
    "grey key": keyed("L"),
    "colour key": keyed("RGB"),
    "grey key of 16 bits": keyed_16_bits(),
}


@pytest.mark.parametrize("file", TRANSPARENT)
def test_a_black_drawing_on_a_transparent_ground_lies_on_white(file: str):
    data = TRANSPARENT[file]
    for decoder in (PillowDecoder(), TurboDecoder(), PillowDecoder(transparency="white")):
        pixels = np.asarray(decoder.decode(data, "x"))
        assert (pixels[:7] == 255).all()
        assert (pixels[13:] == 255).all()
        assert (pixels[8:12] < 10).all()
    as_published = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA").convert("RGB"))
    for decoder in (PillowDecoder(transparency="ignore"), TurboDecoder(transparency="ignore")):
        pixels = np.asarray(decoder.decode(data, "x"))
        if "16" not in file:  # Pillow would clip
            assert np.array_equal(pixels, as_published)
        assert (pixels < 10).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_half_transparent_pixels_are_mixed_with_white(mode: str):
    image = drawing("RGBA" if mode == "PA" else mode)
    if mode == "PA":
        image = Image.new("P", image.size).convert("PA")
        image.putalpha(drawing().getchannel("A"))
    pixels = np.asarray(ToRgb()(image))
    assert np.abs(pixels[7].astype(int) - 127).max() <= 1
    assert (pixels[0] == 255).all()
    assert (np.asarray(ToRgb("ignore")(image)) == 0).all()


def turned(value: int, picture_format: str = "JPEG") -> bytes:
    """A red left and a blue right half, stored as they are, with an orientation in the EXIF."""
    halves = np.zeros((24, 48, 3), np.uint8)
    halves[:, :24, 0] = halves[:, 24:, 2] = 255
    halves[:4, :, 1] = 255  # and a green bar above
    exif = Image.Exif()
    exif[274] = value
    return encoded(Image.fromarray(halves), picture_format, exif=exif, quality=95)


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientation_is_ignored_as_published_or_applied(value: int, picture_format: str):
    data = turned(value, picture_format)
    stored = Image.open(io.BytesIO(data))
    upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    for decoder in (PillowDecoder, TurboDecoder):
        assert np.array_equal(np.asarray(decoder().decode(data, "x")), np.asarray(stored.convert("RGB")))
        applied: Any = decoder(exif="apply").decode(data, "x")
        assert np.array_equal(np.asarray(applied), upright)
        assert decoder(exif="apply").size(applied) == (upright.shape[1], upright.shape[0])
    again = ToRgb(exif="apply")(open_image(data, "x", ToRgb(exif="apply")))
    assert np.array_equal(np.asarray(again), upright)  # and not turned twice
    transform = EvalTransform(size=24, mean=[0.5] * 3, std=[0.5] * 3, exif="apply")
    pixels = EvalTransform(size=24, mean=[0.5] * 3, std=[0.5] * 3)(Image.fromarray(upright))
    assert transform.read(data, "x").equal(pixels)
    assert transform(Image.open(io.BytesIO(data))).equal(pixels)


def test_an_orientation_behind_a_long_header_is_applied():
    data = turned(6)
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFD)  # the longest segment that a JPEG can have
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    for decoder in (PillowDecoder, TurboDecoder):
        applied: Any = decoder(exif="apply").decode(data[:2] + comment + data[2:], "x")
        assert np.array_equal(np.asarray(applied), upright)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged EXIF
def test_damaged_exif_turns_nothing():
    data = encoded(Image.new("RGB", (6, 4)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert open_image(data, "x", ToRgb(exif="apply")).size == (6, 4)
    assert open_image(turned(77), "x", ToRgb(exif="apply")).size == (48, 24)


def test_a_tiffs_own_orientation_is_applied_once():
    image = Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30))
    tags = ImageFileDirectory_v2()
    tags[274] = 6
    data = encoded(image, "TIFF", tiffinfo=tags)
    for exif in ("ignore", "apply"):
        assert open_image(data, "x", ToRgb(exif=exif)).size == (20, 30)


@pytest.mark.parametrize(("name", "value"), [("transparency", "black"), ("exif", "upright")])
def test_unknown_settings_are_named(name: str, value: str):
    settings: Any = {name: value}
    for built in (PillowDecoder, TurboDecoder):
        with pytest.raises(UserError, match=rf"^{name}={value}: expected .* or "):
            built(**settings)
    with pytest.raises(UserError, match=rf"^{name}={value}: expected"):
        EvalTransform(size=8, mean=[0.5] * 3, std=[0.5] * 3, **settings)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"size": 200_000}, r"^size=200000: expected from 1 to 10,000 pixels"),
        ({"size": 0}, r"^size=0: expected"),
        ({"size": 8, "resize_to": 10_001}, r"^resize_to=10001: expected from 1 to 10,000 pixels"),
    ],
)
def test_a_resize_to_more_pixels_than_any_model_takes_is_refused(sizes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        EvalTransform(**sizes, mean=[0.5] * 3, std=[0.5] * 3)


def test_settings_come_back_from_a_checkpoint():
    settings: dict[str, Any] = {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}
    choices: list[dict[str, Any]] = [{}, {"transparency": "ignore"}, {"transparency": "ignore", "exif": "apply"}]
    for more in choices:
        transform = EvalTransform(**settings, **more)
        assert transform.settings() == settings | more
        assert EvalTransform(**transform.settings()).to_rgb == transform.to_rgb
