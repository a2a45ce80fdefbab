"""COCO's and Flickr's captions in their usual files: all captions of an image, of the right split."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import evaluation_layouts as layouts
import numpy as np
import pytest

from openslip.config.build import build_evaluations
from openslip.config.compose import compose_config
from openslip.data.image.decode import open_image
from openslip.data.source import Source
from openslip.data.sources.karpathy import caption_table, coco_captions, karpathy
from openslip.errors import MissingData, UserError

# Writer of each layout, which returns the file of captions, and its reader.
LAYOUTS: dict[str, tuple[Callable[[Path], Path], Callable[..., Source]]] = {
    "COCO's JSON of Karpathy": (layouts.karpathy_json, partial(karpathy, split="test")),
    "Flickr's JSON of Karpathy": (partial(layouts.karpathy_json, filepath=None), partial(karpathy, split="test")),
    "COCO's captions": (layouts.coco_json, coco_captions),
    "table": (layouts.caption_csv, caption_table),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_all_captions_of_every_image(tmp_path: Path, name: str):
    write, read = LAYOUTS[name]
    source = read(images=str(tmp_path), captions=str(write(tmp_path)))
    assert len(source) == len(layouts.CAPTIONS)
    for index, captions in enumerate(layouts.CAPTIONS):
        sample = source[index]
        assert sample.captions == captions
        assert sample.label is None
        pixels = np.asarray(open_image(sample.image, sample.key)).astype(int)
        assert np.abs(pixels - layouts.colour(index, 0)).max() <= 3


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_image_is_named(tmp_path: Path, name: str):
    write, read = LAYOUTS[name]
    captions = write(tmp_path)
    next(tmp_path.rglob("image_1.jpg")).unlink()
    with pytest.raises(UserError, match=r"1 of 3 listed images do not exist, such as .*image_1\.jpg"):
        read(images=str(tmp_path), captions=str(captions))


def test_the_fingerprint_changes_with_a_caption(tmp_path: Path):
    path = layouts.caption_csv(tmp_path)
    before = caption_table(images=str(tmp_path), captions=str(path)).fingerprint
    path.write_text(path.read_text().replace("Two cats", "Two dogs"))
    assert caption_table(images=str(tmp_path), captions=str(path)).fingerprint != before


def test_commas_and_quotation_marks_without_csv_quoting_are_kept(tmp_path: Path):
    path = layouts.caption_csv(tmp_path)
    path.write_text('image,caption\nimage_0.jpg,one, two\nimage_0.jpg,"a" and "b"\n\nimage_0.jpg,"x, ""y"""\n')
    source = caption_table(images=str(tmp_path), captions=str(path))
    assert source[0].captions == ("one, two", '"a" and "b"', 'x, "y"')


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (karpathy, {"images": []}, "has no split test; expected one of"),
        (karpathy, {"images": [{"filename": "a.jpg"}]}, "expected filename, split and sentences"),
        (karpathy, [], "has no list `images`"),
        (
            karpathy,
            {"images": [{"filename": "image_0.jpg", "split": "test", "sentences": []}]},
            r"image_0\.jpg has no caption",
        ),
        (
            karpathy,
            {"images": [{"filename": "image_0.jpg", "split": "test", "sentences": [{"raw": 3}]}]},
            "expected a text `raw`, not",
        ),
        (
            karpathy,
            {"images": [{"filename": "../a.jpg", "split": "test", "sentences": [{"raw": "a"}]}]},
            r"lists .*\.\./a\.jpg, which is outside",
        ),
        (coco_captions, {"images": []}, "has no list `annotations`"),
        (
            coco_captions,
            {"images": [], "annotations": [{"image_id": 3, "caption": "a"}]},
            "captions of image 3, which is not among its images",
        ),
    ],
)
def test_another_file_is_refused(tmp_path: Path, read: Callable[..., Source], content: Any, message: str):
    path = layouts.put(tmp_path / "captions.json", text=json.dumps(content))
    options = {"split": "test"} if read is karpathy else {}
    with pytest.raises(UserError, match=message):
        read(images=str(tmp_path), captions=str(path), **options)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_table_is_decoded_by_its_byte_order_mark(tmp_path: Path, encoding: str):
    path = layouts.caption_csv(tmp_path)
    path.write_bytes("image,caption\r\nimage_0.jpg,un caf\u00e9\r\n".encode(encoding))
    assert caption_table(images=str(tmp_path), captions=str(path))[0].captions == ("un caf\u00e9",)


def test_a_table_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path):
    path = layouts.caption_csv(tmp_path)
    path.write_bytes("image,caption\nimage_0.jpg,one\n\u00e9t\u00e9.jpg,two\n".encode("latin-1"))
    with pytest.raises(UserError, match=rf"{path}, line 3: not UTF-8; save the file as UTF-8"):
        caption_table(images=str(tmp_path), captions=str(path))


def test_an_empty_caption_is_refused(tmp_path: Path):
    path = layouts.caption_csv(tmp_path)
    path.write_text("image,caption\nimage_0.jpg,one\nimage_1.jpg, \n")
    with pytest.raises(UserError, match=r"image_1\.jpg has an empty caption; write its text or remove it"):
        caption_table(images=str(tmp_path), captions=str(path))


def test_a_table_line_without_a_comma_is_refused(tmp_path: Path):
    path = layouts.caption_csv(tmp_path)
    path.write_text("image,caption\nimage_0.jpg\n")
    with pytest.raises(UserError, match=r"line 2: expected IMAGE,CAPTION, not image_0\.jpg"):
        caption_table(images=str(tmp_path), captions=str(path))


@pytest.mark.parametrize("read", [karpathy, coco_captions, caption_table])
def test_absent_captions_are_missing_data(tmp_path: Path, read: Callable[..., Source]):
    options = {"split": "test"} if read is karpathy else {}
    with pytest.raises(MissingData, match="no such file; expected captions of images"):
        read(images=str(tmp_path), captions=str(tmp_path / "captions"), **options)


@pytest.mark.parametrize("name", ["coco", "flickr30k", "flickr8k"])
def test_configs_read_every_layout_and_name_all_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("EVALUATION_DATA", str(tmp_path))
    settings = compose_config("train", [f"evaluation={name}"])[0]["evaluation"]
    with pytest.raises(MissingData, match=rf"^{name}: no files found .* \(wds\).* openslip data get {name} says how"):
        build_evaluations(settings)
    places: dict[str, dict[str, str]] = settings[name]["source"]["places"]
    for layout in [*places][::-1]:  # from the last to the first, so that each one is found before those written earlier
        write(layout, places[layout])
        source = vars(build_evaluations(settings)[name])["source"]
        assert [source[index].captions for index in range(3)] == [*map(tuple, layouts.CAPTIONS)]


def write(layout: str, place: dict[str, str]) -> None:
    match layout:
        case "wds":
            texts = ["\n".join(captions).encode() for captions in (*layouts.CAPTIONS, *layouts.CAPTIONS)]
            layouts.wds(
                Path(place["root"]),
                kind="retrieval",
                targets=lambda label, number: ("txt", texts[label * layouts.PER_CLASS + number]),
            )
        case "karpathy":
            images = Path(place["images"])
            layouts.karpathy_json(images, "val2014" if images.name == "coco" else None).rename(place["captions"])
        case "coco":
            layouts.coco_json(Path(place["images"])).rename(place["captions"])
        case "csv":
            layouts.caption_csv(Path(place["images"])).rename(place["captions"])


def test_a_table_without_a_header_loses_no_caption_unseen(tmp_path: Path):
    (tmp_path / "captions.txt").write_text("a.jpg,a dog\nb.jpg,a cat\n")
    with pytest.raises(UserError, match=r"the first line a\.jpg,a dog is no header"):
        caption_table(images=str(tmp_path), captions=str(tmp_path / "captions.txt"))


def test_an_image_that_is_listed_twice_is_refused(tmp_path: Path):
    entry = {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "a dog"}]}
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [entry, entry]}))
    with pytest.raises(UserError, match=r"lists the image \./a\.jpg twice"):
        karpathy(images=str(tmp_path), captions=str(tmp_path / "dataset.json"), split="test")
