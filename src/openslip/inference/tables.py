"""Published class names and templates by a dataset's name: the text files of `evaluation/names` and `templates`.

A file's first line names its source. A line of class names is `NAME`, `NAME + NAME` (the prompts of all names are
averaged) or `NAME | SPELLING | ...` (other spellings of the class in the dataset's files); `""` is a blank name. If all
lines are WordNet ids, each stands for CLIP's name of that ImageNet class. `NAME.other_order.txt` lists the classes in
another published label order.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from openslip.inference.imagenet_classes import are_ids, imagenet_ids, imagenet_names
from openslip.inference.imagenet_prompts import imagenet_classnames, imagenet_templates

FOLDER = Path(__file__).parents[1] / "evaluation"
TEMPLATES_OF_PACKAGES: dict[str, Callable[[], list[str]]] = {
    "imagenet7": lambda: imagenet_templates(7),
    "imagenet80": lambda: imagenet_templates(80),
}


@dataclass(frozen=True)
class ClassTable:
    """Published classes of a dataset.

    Attributes:
        name: name of the table.
        names: per class, in the published label order, its names in prompts: one, or several that are averaged.
        spellings: per class, all that may stand for it in the dataset's files: its names, its folder.
        other_order: the classes in another published label order; empty if there is none.
        allows_some: whether a dataset may have only some of the classes, which are then the only candidates.
    """

    name: str
    names: tuple[tuple[str, ...], ...]
    spellings: tuple[tuple[str, ...], ...]
    other_order: tuple[str, ...] = ()
    allows_some: bool = False


@cache
def class_table(name: str) -> ClassTable | None:
    """Return the table of a dataset's classes, or None if there is none of this name."""
    if name in TABLES_OF_PACKAGES:
        return TABLES_OF_PACKAGES[name]()
    if name not in table_names("classnames"):
        return None
    rows = [line.split(" | ") for line in lines(FOLDER / "names" / f"{name}.txt")]
    names = [tuple(part.replace('""', "") for part in row[0].split(" + ")) for row in rows]
    spellings = [tuple(row[1:]) for row in rows]
    if are_ids(ids := [row[0] for row in rows]):
        names, spellings = [(clip_name,) for clip_name in imagenet_names(ids)], [(identifier,) for identifier in ids]
    other = FOLDER / "names" / f"{name}.other_order.txt"
    return ClassTable(
        name=name,
        names=tuple(names),
        spellings=tuple(map(operator.add, names, spellings)),
        other_order=tuple(lines(other)) if other.is_file() else (),
    )


def imagenet_table() -> ClassTable:
    """Return ImageNet-1k's classes with CLIP's names; many folders hold only some of these classes."""
    names = imagenet_classnames()
    return ClassTable(
        name="imagenet",
        names=tuple((name,) for name in names),
        spellings=tuple(zip(names, imagenet_ids(), strict=True)),
        allows_some=True,
    )


TABLES_OF_PACKAGES = {"imagenet": imagenet_table}


def template_table(name: str) -> list[str] | None:
    """Return a dataset's prompt templates, or None if there are none of this name."""
    if name in TEMPLATES_OF_PACKAGES:
        return TEMPLATES_OF_PACKAGES[name]()
    return lines(FOLDER / "templates" / f"{name}.txt") if name in table_names("templates") else None


@cache
def table_names(key: str) -> list[str]:
    """List the names of all tables.

    Args:
        key: `classnames` or `templates`.
    """
    folder, others = ("names", TABLES_OF_PACKAGES) if key == "classnames" else ("templates", TEMPLATES_OF_PACKAGES)
    files = [path.stem for path in (FOLDER / folder).glob("*.txt")]
    return sorted([*others, *(name for name in files if "." not in name)])


def lines(path: Path) -> list[str]:
    """Return the lines of a table after its first, which names the source."""
    return path.read_text(encoding="utf-8").splitlines()[1:]
