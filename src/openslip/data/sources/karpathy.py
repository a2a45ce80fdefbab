"""Readers of COCO's and Flickr's captions in their usual files, with Karpathy's splits.

Karpathy and Fei-Fei 2015, arXiv:1412.2306. An image has all of its captions, any number of them.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openslip.data.captions.decoding import read_text
from openslip.data.convert.metadata import read_json
from openslip.data.source import Source
from openslip.data.sources.captioned_files import CaptionedFiles
from openslip.errors import MissingData, UserError

QUOTED = re.compile(r'"([^"]|"")*"')  # a cell of CSV in quotation marks


def karpathy(*, images: str, captions: str, split: str) -> Source:
    """Read a split of `dataset_coco.json`, `dataset_flickr30k.json` or `dataset_flickr8k.json`.

    Args:
        images: folder of the images; for COCO the one that holds `val2014`.
        captions: the JSON file.
        split: `test`, `val`, `train`, or COCO's `restval`.

    Raises:
        MissingData: the JSON file does not exist.
        UserError: it has another form or no such split, or an image is missing.
    """
    path = existing(captions)
    texts: dict[str, list[str]] = {}
    splits: set[str] = set()
    for entry in entries_of(path, "images"):
        match entry:
            case {"filename": str() as name, "split": str() as entry_split, "sentences": [*sentences]}:
                splits.add(entry_split)
                if entry_split == split:
                    name = f"{entry.get('filepath', '.')}/{name}"
                    refuse_repeated(name, texts, path)
                    texts[name] = [text_of(sentence, "raw", path) for sentence in sentences]
            case _:
                raise UserError(f"{path}: expected filename, split and sentences of each image, not {entry!r:.60}")
    if split not in splits:
        raise UserError(f"{path} has no split {split}; expected one of {', '.join(sorted(splits))}")
    return CaptionedFiles(Path(images), texts, path)


def coco_captions(*, images: str, captions: str) -> Source:
    """Read all images of a file in the form of COCO's captions, such as `coco_test_karpathy.json`.

    Args:
        images: folder of the images, such as `val2014`.
        captions: the JSON file, with the lists `images` and `annotations`.

    Raises:
        MissingData: the JSON file does not exist.
        UserError: it has another form, or an image is missing.
    """
    path = existing(captions)
    of_image = defaultdict[Any, list[str]](list)
    for entry in entries_of(path, "annotations"):
        match entry:
            case {"image_id": str() | int() as number}:
                of_image[number].append(text_of(entry, "caption", path))
            case _:
                raise UserError(f"{path}: expected image_id and caption of each annotation, not {entry!r:.60}")
    texts: dict[str, list[str]] = {}
    for entry in entries_of(path, "images"):
        match entry:
            case {"id": str() | int() as number, "file_name": str() as name}:
                refuse_repeated(name, texts, path)
                texts[name] = of_image.pop(number, [])
            case _:
                raise UserError(f"{path}: expected id and file_name of each image, not {entry!r:.60}")
    if of_image:
        raise UserError(f"{path} has captions of image {next(iter(of_image))}, which is not among its images")
    return CaptionedFiles(Path(images), texts, path)


def caption_table(*, images: str, captions: str) -> Source:
    """Read a table of images and captions, such as `flickr30k_test_karpathy.txt` or Flickr8k's `captions.txt`.

    After a header, each line is `IMAGE,CAPTION`. A caption with commas may be in quotation marks or not.

    Args:
        images: folder of the images.
        captions: the table.

    Raises:
        MissingData: the table does not exist.
        UserError: the table cannot be decoded, a line has no comma, or an image is missing.
    """
    path = existing(captions)
    texts = defaultdict[str, list[str]](list)
    lines = read_text(path).split("\n")
    if Path(lines[0].partition(",")[0].strip()).suffix:
        raise UserError(f"{path}: the first line {lines[0]:.60} is no header: add the line image,caption before it")
    for number, line in enumerate(lines[1:], start=2):
        name, comma, caption = line.partition(",")
        if not comma:
            if line.strip():
                raise UserError(f"{path}, line {number}: expected IMAGE,CAPTION, not {line:.60}")
            continue
        caption = caption.strip()
        texts[name.strip()].append(caption[1:-1].replace('""', '"') if QUOTED.fullmatch(caption) else caption)
    return CaptionedFiles(Path(images), texts, path)


def refuse_repeated(name: str, texts: Mapping[str, list[str]], path: Path) -> None:
    if name in texts:
        raise UserError(f"{path} lists the image {name} twice: merge its captions into one entry")


def existing(captions: str) -> Path:
    if not Path(captions).exists():
        raise MissingData(f"{captions}: no such file; expected captions of images", captions)
    return Path(captions)


def entries_of(path: Path, name: str) -> list[Any]:
    match read_json(path):
        case {**fields} if isinstance(fields.get(name), list):
            return fields[name]
        case _:
            raise UserError(f"{path} has no list `{name}`; expected the published file of captions")


def text_of(entry: Any, name: str, path: Path) -> str:
    match entry:
        case {**fields} if isinstance(fields.get(name), str):
            return fields[name]
        case _:
            raise UserError(f"{path}: expected a text `{name}`, not {entry!r:.60}")
