"""RedCaps: annotations/SUBREDDIT_YEAR.json (or all of them in one file) and images/SUBREDDIT/IMAGE_ID.jpg."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from openslip.data.captions.policy import listed, not_texts
from openslip.data.convert import metadata as files
from openslip.data.convert.record import NOT_A_TEXT, LeftOut, Record, one_per_image, record_in
from openslip.errors import UserError


def records(root: Path, *, metadata: Path | None = None, images: Path | None = None) -> Iterator[Record | LeftOut]:
    """Yield records in the order of file names and annotations; the annotations of one image are joined.

    The other fields of an image's first annotation go to KEY.json.

    Args:
        root: folder of the dataset.
        metadata: file to read instead of ROOT/annotations/: an annotation file of RedCaps, or published SLIP's file of
            all annotations.
        images: folder of the images; by default ROOT/images, or ROOT.
    """
    folder = files.images_folder(root, images, "images")
    paths = files.visible((root / "annotations").glob("*.json")) if metadata is None else [files.find(root, metadata)]
    if not paths:
        raise UserError(f"{root}/annotations holds no .json file: give the annotations with --metadata FILE")
    yield from one_per_image(partial(of_files, paths, folder))


def of_files(paths: Sequence[Path], folder: Path) -> Iterator[Record | LeftOut]:
    for path in paths:
        content = files.read_json(path)
        annotations = content.get("annotations") if isinstance(content, dict) else content
        if not isinstance(annotations, list):
            raise UserError(f"{path} has no list `annotations`, as RedCaps' files have")
        for annotation in annotations:
            match annotation:
                case {"image_id": str() | int() as image_id, "subreddit": str() as subreddit}:
                    key, texts = f"{subreddit}/{image_id}", listed(annotation.get("caption"))
                    if not_texts(texts):
                        yield LeftOut(f"a caption of {key}", NOT_A_TEXT)
                    captions = tuple(text for text in texts if isinstance(text, str))
                    fields = {name: value for name, value in annotation.items() if name != "caption"}
                    yield record_in(folder, f"{key}.jpg", key, captions, fields)
                case _:
                    yield LeftOut(f"{annotation!r:.80}", "annotation without image_id and subreddit")
