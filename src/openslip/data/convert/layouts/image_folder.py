"""ROOT/CLASS/*.jpg: a label is the place of its class folder in alphabetical order; a caption only by a template."""

import sys
from collections.abc import Iterator
from pathlib import Path

from openslip.data.convert.record import LeftOut, PictureFile, Record
from openslip.data.sources.image_folder import class_files, folder_names
from openslip.errors import UserError


def records(root: Path, *, template: str | None = None) -> Iterator[Record | LeftOut]:
    """Records in the order of labels, then of paths; keys begin with the class.

    Args:
        root: folder of the class folders.
        template: such as "a photo of a {}.": makes a caption of the class folder's name, its underscores as spaces.
    """
    if template is not None and "{}" not in template:
        raise UserError(f'--template {template!r}: expected {{}} in it for the class, as in "a photo of a {{}}."')
    names = folder_names(str(root))
    files, skipped = class_files(root, names)
    sys.stderr.writelines(f"{root}: skipped {line}\n" for line in skipped)
    for path, label in files:
        captions = () if template is None else (template.replace("{}", names[label].replace("_", " ")),)
        yield Record(str(path.relative_to(root).with_suffix("")), PictureFile(str(path)), captions, label)
