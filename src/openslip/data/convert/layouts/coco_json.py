"""COCO: annotations/captions_train2017.json, and images in train2017/; a sample has all captions of an image."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from openslip.data.captions.policy import listed, not_texts
from openslip.data.convert import metadata as files
from openslip.data.convert.record import NOT_A_TEXT, LeftOut, Record, one_per_image, record_in
from openslip.errors import UserError


def records(root: Path, *, metadata: Path | None = None, images: Path | None = None) -> Iterator[Record | LeftOut]:
    """Yield records in the order of `images` in the file; the captions of one image are joined.

    Args:
        root: folder of the dataset.
        metadata: file of the captions; by default the only annotations/captions_*.json or captions_*.json in ROOT.
        images: folder of the images; by default train2017 for captions_train2017.json, else ROOT/images, or ROOT.
    """
    path = files.find(root, metadata, "annotations/captions_*.json", "captions_*.json")
    match files.read_json(path):
        case {"images": [*entries], "annotations": [*annotations]}:
            pass
        case _:
            raise UserError(f"{path} has no lists `images` and `annotations`, as COCO's captions have")
    folder = files.images_folder(root, images, path.stem.removeprefix("captions_"), "images")
    captions = defaultdict[str, list[str]](list)
    for annotation in annotations:
        texts = listed(annotation.get("caption")) if isinstance(annotation, dict) else []
        if not_texts(texts):
            yield LeftOut(f"a caption of {annotation.get('image_id')}", NOT_A_TEXT)
        if texts := [text for text in texts if isinstance(text, str)]:
            captions[str(annotation.get("image_id"))] += texts
    yield from one_per_image(partial(of_entries, entries, captions, folder))


def of_entries(entries: list[Any], captions: dict[str, list[str]], folder: Path) -> Iterator[Record | LeftOut]:
    unused = dict(captions)
    for entry in entries:
        match entry:
            case {"file_name": str() as name}:
                texts = tuple(unused.pop(str(entry.get("id")), ()))
                yield record_in(folder, name, name.rpartition(".")[0], texts)
            case _:
                yield LeftOut(f"{entry!r:.80}", "entry of `images` without a file_name")
    for image_id in unused:
        yield LeftOut(image_id, "captions of an image that is not in `images`")
