"""COCO captions: annotations/captions_train2017.json and the pictures in train2017/; all captions of a picture."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from openslip.data.convert import metadata as files
from openslip.data.convert.record import LeftOut, PictureFile, Record, below
from openslip.errors import UserError


def records(root: Path, *, metadata: Path | None = None, images: Path | None = None) -> Iterator[Record | LeftOut]:
    """In the order of `images` in the file.

    Args:
        root: the collection's folder.
        metadata: the captions; by default the only annotations/captions_*.json or captions_*.json in ROOT.
        images: folder of the pictures; by default the one after which the captions are named, or ROOT.
    """
    path = files.find(root, metadata, "annotations/captions_*.json", "captions_*.json")
    content = files.read_json(path)
    pictures, annotations = (
        content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")
    )
    if not isinstance(pictures, list) or not isinstance(annotations, list):
        raise UserError(f"{path} has no lists `images` and `annotations`, as COCO's captions have")
    folder = files.pictures_folder(root, images, path.stem.removeprefix("captions_"), "images")
    captions = defaultdict[object, list[str]](list)
    for annotation in annotations:
        if isinstance(annotation, dict) and isinstance(annotation.get("caption"), str):
            captions[str(annotation.get("image_id"))].append(annotation["caption"])
    for picture in pictures:
        name = picture.get("file_name") if isinstance(picture, dict) else None
        if not isinstance(name, str):
            yield LeftOut(f"{picture!r:.80}", "entry of `images` without a file_name")
            continue
        found = below(folder, name)
        if found is None:
            yield LeftOut(name, "path that leads out of the collection's folder")
            continue
        yield Record(name.rpartition(".")[0], PictureFile(found), tuple(captions.pop(str(picture.get("id")), ())))
    for number in captions:
        yield LeftOut(str(number), "captions of a picture that is not in `images`")
