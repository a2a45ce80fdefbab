"""Images in ROOT/CLASS/*.jpg, labelled from 0 in the order of the class folders; --template adds captions."""

from collections.abc import Iterator
from pathlib import Path

from openslip.data.class_names import words
from openslip.data.convert.record import LeftOut, PictureFile, Record
from openslip.data.sources.image_folder import class_files, folder_names
from openslip.distributed import notice_once
from openslip.errors import UserError


def records(root: Path, *, template: str | None = None, underscores: str | None = None) -> Iterator[Record | LeftOut]:
    """Yield records in the order of labels, then of paths; keys begin with the name of the class folder.

    Args:
        root: folder of the class folders.
        template: text that makes a caption of the class name, such as "a photo of a {}."; by default no caption.
        underscores: `space` (default) replaces underscores of class names by spaces in captions; `keep` keeps them.
    """
    if template is not None and "{}" not in template:
        raise UserError(f'--template {template!r}: expected {{}} in it for the class, as in "a photo of a {{}}."')
    names = folder_names(str(root))
    files, skipped = class_files(root, names)
    notice_once(*(f"{root}: skipped {line}" for line in skipped))
    if template is not None and underscores is None and any("_" in name for name in names):
        notice_once("captions: `_` in folder names is read as a space (--underscores keep leaves it)")
    for path, label in files:
        captions = () if template is None else (template.replace("{}", words(names[label], underscores or "space")),)
        yield Record(str(path.relative_to(root).with_suffix("")), PictureFile(str(path)), captions, label)
