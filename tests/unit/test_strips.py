"""Images that are very long and very narrow: a file of 2 kB must not cost gigabytes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openslip.data.batches import DecodedImage, DecodedSample
from openslip.data.check.contact_sheet import draw_contact_sheet
from openslip.data.convert.image import convert_image
from openslip.data.image.crop import RandomResizedCrop
from openslip.data.image.decode import Decoder, PillowDecoder, TurboDecoder
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.sources.image_folder import ImageFolder

TRANSFORM = EvalTransform(size=224, mean=[0.0] * 3, std=[1.0] * 3)
STRIPS = [(1, 400_000), (400_000, 1), (1, 5_000_000), (5_000_000, 1), (2, 999_999), (700_001, 7)]
MOST = 8_000_000  # pixels of what an image is resized to


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), 200).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def resized(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pixels of all that Pillow was asked to resize to."""
    sizes: list[int] = []
    resize = Image.Image.resize

    def recorded(self: Image.Image, size: Any, *arguments: Any, **options: Any) -> Image.Image:
        sizes.append(int(size[0]) * int(size[1]))
        assert sizes[-1] <= MOST  # before the memory is asked for
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    return sizes


@pytest.mark.parametrize("size", STRIPS)
def test_a_strip_is_evaluated_and_predicted_in_little_memory(size: tuple[int, int], resized: list[int]):
    seen = TRANSFORM.read(png(*size), "x")
    assert seen.shape == (3, 224, 224)
    assert (seen * 255).round().unique().tolist() == [200]
    assert len(resized) == 1


@pytest.mark.parametrize("decoder", [PillowDecoder(), TurboDecoder()])
@pytest.mark.parametrize("size", STRIPS)
def test_a_strip_is_cropped_for_training_in_little_memory(size: tuple[int, int], decoder: Decoder, resized: list[int]):
    image = DecodedImage(decoder.decode(png(*size), "x"), decoder)
    view = RandomResizedCrop(size=224, scale=[0.08, 1.0], augment=None, mean=[0.0] * 3, std=[1.0] * 3)
    crop = view.draw(DecodedSample(0, "x", image, (), None), np.random.default_rng(0))[""]
    assert crop.shape == (3, 224, 224)
    assert np.unique(crop).tolist() == [200]
    assert len(resized) == isinstance(decoder, PillowDecoder)


@pytest.mark.parametrize("size", STRIPS)
def test_a_strip_is_converted_in_little_memory(size: tuple[int, int], resized: list[int]):
    data = png(*size)
    assert convert_image(data, 256) == ("png", data)
    assert not resized


@pytest.mark.usefixtures("resized")
def test_strips_are_drawn_on_a_contact_sheet(tmp_path: Path):
    (tmp_path / "class").mkdir()
    for number, size in enumerate(STRIPS):
        (tmp_path / "class" / f"{number}.png").write_bytes(png(*size))
    assert draw_contact_sheet(ImageFolder(root=str(tmp_path))).width > 224


@pytest.mark.parametrize("size", [(3, 901), (901, 3), (2, 777), (777, 2), (3, 1500), (1, 333)])
def test_the_middle_of_a_strip_is_what_resizing_all_of_it_shows(size: tuple[int, int]):
    strip = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    side = 64
    transform = EvalTransform(size=side, mean=[0.0] * 3, std=[1.0] * 3)
    width, height = (int(side * length / min(size)) for length in size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    whole = strip.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    difference = transform(strip).numpy() * 255 - np.asarray(whole, np.float32).transpose(2, 0, 1)
    assert np.abs(difference).max() <= (2 if (max(size) / min(size)) > 100 else 0.01)


def test_an_image_up_to_a_hundred_times_as_long_as_wide_is_resized_whole(resized: list[int]):
    for size in ((300, 200), (1000, 10), (7, 700)):
        TRANSFORM(Image.new("RGB", size))
    assert resized == [336 * 224, 22_400 * 224, 22_400 * 224]
