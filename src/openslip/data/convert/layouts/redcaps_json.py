"""RedCaps: annotations/SUBREDDIT_YEAR.json (or all of them in one file) and images/SUBREDDIT/IMAGE_ID.jpg."""

from collections.abc import Iterator
from pathlib import Path

from openslip.data.convert import metadata as files
from openslip.data.convert.record import LeftOut, PictureFile, Record, below
from openslip.errors import UserError


def records(root: Path, *, metadata: Path | None = None, images: Path | None = None) -> Iterator[Record | LeftOut]:
    """In the order of the files' names and of the annotations in them; what else an annotation says goes to KEY.json.

    Args:
        root: the collection's folder.
        metadata: one file in place of ROOT/annotations: RedCaps' own, or the list that published SLIP makes of all.
        images: folder of the pictures; by default ROOT/images, or ROOT.
    """
    folder = files.pictures_folder(root, images, "images")
    paths = sorted((root / "annotations").glob("*.json")) if metadata is None else [files.find(root, metadata)]
    if not paths:
        raise UserError(f"{root}/annotations holds no .json file: give the annotations with --metadata FILE")
    for path in paths:
        content = files.read_json(path)
        annotations = content.get("annotations") if isinstance(content, dict) else content
        if not isinstance(annotations, list):
            raise UserError(f"{path} has no list `annotations`, as RedCaps' files have")
        for annotation in annotations:
            fields = dict(annotation) if isinstance(annotation, dict) else {}
            name, subreddit, caption = (fields.get(key) for key in ("image_id", "subreddit", "caption"))
            if not isinstance(name, (str, int)) or not isinstance(subreddit, str):
                yield LeftOut(f"{annotation!r:.80}", "annotation without image_id and subreddit")
                continue
            found = below(folder, f"{subreddit}/{name}.jpg")
            if found is None:
                yield LeftOut(f"{subreddit}/{name}", "path that leads out of the collection's folder")
                continue
            fields.pop("caption", None)
            captions = (caption,) if isinstance(caption, str) else ()
            yield Record(f"{subreddit}/{name}", PictureFile(found), captions, fields=fields)
