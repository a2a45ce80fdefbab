"""Both decoders against Pillow and torchvision, on whole pictures and on damaged ones."""

import io
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image
from shard_files import jpeg

from openslip.data.image.decode import Decoder, PillowDecoder, TurboDecoder, open_image
from openslip.data.image.rgb import ToRgb
from openslip.errors import UserError

T: Any = torchvision.transforms  # its types know of tensors only
DECODERS = [PillowDecoder, TurboDecoder]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours under the noise of a camera."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8))
    smooth = np.asarray(smooth.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, picture_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, picture_format, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size; its pixels are missing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 999) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + data


def jpeg_header(width: int, height: int) -> bytes:
    """A whole JPEG that claims another size."""
    data = bytearray(encoded(picture(32, 32), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


FILES = {
    "4:2:0": encoded(picture(150, 110), "JPEG", quality=90),
    "4:4:4": encoded(picture(150, 110), "JPEG", quality=95, subsampling=0),
    "progressive": encoded(picture(151, 113), "JPEG", progressive=True),
    "restart markers": encoded(picture(150, 110), "JPEG", restart_marker_rows=1),
    "grey": encoded(picture(150, 110).convert("L"), "JPEG"),
    "four channels": encoded(picture(150, 110).convert("CMYK"), "JPEG"),
    "rotated by EXIF": encoded(
        picture(150, 110), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    ),
    "PNG": encoded(picture(150, 110), "PNG"),
    "PNG with alpha": encoded(picture(150, 110).convert("RGBA"), "PNG"),
    "WEBP": encoded(picture(150, 110), "WEBP", lossless=True),
    "one pixel": encoded(picture(1, 1), "JPEG"),
    "one row": encoded(picture(90, 1), "JPEG"),
    "tiny": encoded(picture(7, 5), "JPEG"),
}


@pytest.mark.parametrize("file", FILES)
def test_both_decoders_give_pillows_pixels(file: str):
    expected = np.asarray(Image.open(io.BytesIO(FILES[file])).convert("RGB"))
    for decoder in DECODERS:
        decoded: Any = decoder().decode(FILES[file], "x")
        assert np.array_equal(np.asarray(decoded), expected)
        assert decoder().size(decoded) == (expected.shape[1], expected.shape[0])


@pytest.mark.parametrize("side", [1, 20, 224])
@pytest.mark.parametrize("file", FILES)
def test_crops_are_torchvisions_at_the_same_box(file: str, side: int):
    image, pillow, turbo = open_image(FILES[file], "x"), PillowDecoder(), TurboDecoder()
    decoded, rng = turbo.decode(FILES[file], "x"), np.random.default_rng(0)
    for _ in range(6):
        (left, right), (top, bottom) = (np.sort(rng.choice(size + 1, 2, replace=False)).tolist() for size in image.size)
        expected = T.functional.resized_crop(
            image, top, left, bottom - top, right - left, [side, side], T.InterpolationMode.BILINEAR
        )
        expected = np.asarray(expected).transpose(2, 0, 1)
        assert np.array_equal(pillow.crop(image, (left, top, right, bottom), side), expected)
        crop = turbo.crop(decoded, (left, top, right, bottom), side)
        difference = np.abs(crop.astype(int) - expected)
        assert difference.mean() < 0.1  # of a level
        assert difference.max() <= 1
        assert crop.flags.c_contiguous


@pytest.mark.parametrize("decoder", [PillowDecoder(), TurboDecoder()])
def test_nothing_outside_the_box_is_seen(decoder: Decoder):
    image = picture(60, 50)
    alone = Image.new("RGB", (60, 50))
    alone.paste(image.crop((13, 7, 41, 39)), (13, 7))
    crop, crop_alone = (
        decoder.crop(decoder.decode(encoded(whole, "PNG"), "x"), (13, 7, 41, 39), 24)  # pyright: ignore[reportArgumentType]
        for whole in (image, alone)
    )
    assert np.array_equal(crop, crop_alone)


@pytest.mark.parametrize("decoder", [PillowDecoder(), TurboDecoder()])
def test_a_decoder_reaches_worker_processes(decoder: Decoder):
    again = pickle.loads(pickle.dumps(decoder))
    assert again.name == decoder.name
    assert np.array_equal(np.asarray(again.decode(jpeg(0), "x")), np.asarray(decoder.decode(jpeg(0), "x")))


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, with bits flipped, with bytes overwritten, removed or added."""
    changed, at, length = bytearray(data), int(rng.integers(len(data))), int(rng.integers(1, 60))
    match rng.integers(6):
        case 0:
            del changed[at:]
        case 1:
            del changed[-int(rng.integers(1, 12)) :]
        case 2:
            changed[at] ^= 1 << int(rng.integers(8))
        case 3:
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        case 4:
            del changed[at : at + length]
        case 5:
            changed[at:at] = rng.bytes(length)
    return bytes(changed)


def outcome(decoder: Decoder, data: bytes) -> np.ndarray | str:
    """The pixels, or the error's message."""
    try:
        return np.asarray(decoder.decode(data, "x"))
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("file", ["4:2:0", "4:4:4", "progressive", "restart markers", "grey", "four channels", "tiny"])
@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged EXIF and of sizes that a flipped bit makes up
def test_both_decoders_refuse_the_same_damaged_pictures_and_agree_on_the_others(file: str):
    rng, refused = np.random.default_rng(0), 0
    for _ in range(120):
        data = damaged(FILES[file], rng)
        pillow, turbo = outcome(PillowDecoder(), data), outcome(TurboDecoder(), data)
        refused += isinstance(pillow, str)
        assert np.array_equal(turbo, pillow)
    assert 20 < refused < 120


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
    opened = open_image(encoded(palette, "PNG", transparency=bytes(range(256))), "x", ToRgb("ignore"))
    assert np.array_equal(np.asarray(opened), np.asarray(palette.convert("RGB")))
    deep = Image.fromarray(np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30))
    values = np.asarray(open_image(encoded(deep, "PNG"), "x"))[..., 0].ravel()
    assert np.abs(values - np.linspace(0, 255, 600)).max() <= 1


@pytest.mark.parametrize(
    "data",
    [
        jpeg(0)[:400],
        jpeg(0)[:-60],
        jpeg(0)[:-2],
        b"",
        b"\xff\xd8",
        b"<html>not found</html>",
        jpeg(0)[:20] + b"\0" * 300,
        png_header(20, 20),
    ],
    ids=["half", "end missing", "end marker missing", "nothing", "start alone", "html", "zeros", "header alone"],
)
@pytest.mark.parametrize("decoder", DECODERS)
def test_damaged_pictures_are_named(decoder: type[Decoder], data: bytes):
    with pytest.raises(UserError, match=r"^shard\.tar:key: cannot be decoded \(.+\); replace or remove it$"):
        decoder().decode(data, "shard.tar:key")


def test_a_missing_picture_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"cat\.jpg: cannot be decoded \(.*No such file"):
        open_image(tmp_path / "cat.jpg", "cat.jpg")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("header", [png_header, jpeg_header])
@pytest.mark.parametrize("side", [7072, 9000, 14_000, 60_000])
def test_large_pictures_are_refused_before_they_are_decoded(decoder: type[Decoder], header: Any, side: int):
    data = header(side, side)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"^bomb: .* 50,000,000 pixels are refused"):
        decoder().decode(data, "bomb")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


REFUSE = """
import resource, sys
from openslip.data.image.decode import PillowDecoder, TurboDecoder
from openslip.errors import UserError
pictures = [open(path, "rb").read() for path in sys.argv[1:]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for picture in pictures:
    for decoder in (PillowDecoder(), TurboDecoder()):
        try:
            decoder.decode(picture, "bomb")
        except UserError as error:
            print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_refusing_whole_pictures_of_81_and_196_megapixels_takes_less_than_50_megabytes(tmp_path: Path):
    for side in (9000, 14_000):
        file, deflate = tmp_path / f"{side}.png", zlib.compressobj(1)
        rows = b"".join(deflate.compress(bytes(3 * side + 1)) for _ in range(side)) + deflate.flush()
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
        file.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
        )
    command = [sys.executable, "-c", REFUSE, *map(str, sorted(tmp_path.glob("*.png")))]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 5
    assert all("50,000,000 pixels are refused" in line or "too many pixels" in line for line in said[:4])
    assert int(said[4]) < 50_000  # kB


def test_programs_are_never_run_to_decode_a_picture():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(UserError, match="not an image in one of the formats"):
        open_image(postscript, "x.eps")
