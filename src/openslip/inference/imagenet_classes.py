"""ImageNet's classes by WordNet id; these ids are the names of ImageNet's class folders. The table is part of timm."""

import importlib.util
import re
from functools import cache
from pathlib import Path

from openslip.errors import UserError
from openslip.inference.imagenet_prompts import imagenet_classnames


@cache
def imagenet_ids() -> dict[str, int]:
    """Map each of ImageNet-1k's 1000 WordNet ids to its label (`n01440764`: 0)."""
    package = importlib.util.find_spec("timm")  # importing timm itself takes seconds
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "data" / "_info" / "imagenet_synsets.txt"
    if not path.is_file():
        raise UserError(f"{path} is missing; ImageNet's WordNet ids are read from it: pip install -U timm")
    return {identifier: label for label, identifier in enumerate(path.read_text().split())}


def are_ids(names: list[str]) -> bool:
    """Tell whether all names are WordNet ids, either of ImageNet-1k's classes or of other classes."""
    return all(re.fullmatch(r"n\d{8}", name) for name in names)


def imagenet_names(ids: list[str]) -> list[str]:
    """Look up CLIP's class names by the WordNet ids of ImageNet-1k's classes.

    Raises:
        UserError: an id does not belong to a class of ImageNet-1k, so the class name is not known.
    """
    labels, names = imagenet_ids(), imagenet_classnames()
    if unknown := [identifier for identifier in ids if identifier not in labels]:
        raise UserError(
            f"classnames: {unknown[0]} is a WordNet id, but not of an ImageNet-1k class: give the names in the order "
            "of the class folders, with classnames=FILE"
        )
    return [names[labels[identifier]] for identifier in ids]
