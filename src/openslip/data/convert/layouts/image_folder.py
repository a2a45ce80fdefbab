"""ROOT/CLASS/*.jpg: a label is the place of its class folder, by alphabet or number; a caption only by a template."""

from collections.abc import Iterator
from pathlib import Path

from openslip.data.class_names import words
from openslip.data.convert.record import LeftOut, PictureFile, Record
from openslip.data.sources.image_folder import folder_names, image_files
from openslip.distributed import notice
from openslip.errors import UserError


def records(root: Path, *, template: str | None = None, underscores: str | None = None) -> Iterator[Record | LeftOut]:
    """Records in the order of labels, then of paths; keys begin with the class.

    Args:
        root: folder of the class folders.
        template: such as "a photo of a {}.": makes a caption of the class folder's name.
        underscores: `keep` leaves those of folder names in captions; `space`, the default, reads each as a space.
    """
    if template is not None and "{}" not in template:
        raise UserError(f'--template {template!r}: expected {{}} in it for the class, as in "a photo of a {{}}."')
    classes = folder_names(str(root))
    if template is not None and underscores is None and any("_" in name for name in classes):
        notice("captions: `_` in folder names is read as a space (--underscores keep leaves it)")
    for label, name in enumerate(classes):
        captions = () if template is None else (template.replace("{}", words(name, underscores or "space")),)
        paths = image_files(root / name)
        if not paths:
            raise UserError(
                f"{root / name} holds no image, but would be class {label}: remove it, or move it out of ROOT"
            )
        for path in paths:
            yield Record(str(path.relative_to(root).with_suffix("")), PictureFile(str(path)), captions, label)
