"""Class names, templates, and class vectors made of them. Radford et al. 2021, arXiv:2103.00020, 3.1.4."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.errors import UserError


def class_embeddings(
    encode_text: Callable[[list[str]], Float[Tensor, "texts embed"]],
    classnames: Sequence[str],
    templates: Sequence[str],
) -> Float[Tensor, "classes embed"]:
    """One unit vector per class: its prompts' unit vectors, averaged and normalised again.

    Args:
        encode_text: texts to unit vectors, such as a bundle's.
        classnames: of the classes, in the order of their labels.
        templates: prompts with `{}` in the place of the name.

    Raises:
        UserError: no class, no template, or a template without `{}`.
    """
    check_prompts(classnames, templates)
    features = encode_text([template.replace("{}", name) for name in classnames for template in templates])
    return F.normalize(features.view(len(classnames), len(templates), -1).mean(dim=1), dim=-1)


def check_prompts(classnames: Sequence[str], templates: Sequence[str]) -> None:
    """Refuse what no prompt can be made of.

    Raises:
        UserError: no class, no template, or a template without `{}`.
    """
    if not classnames:
        raise UserError("classnames is empty: expected the name of every class, in the order of the labels")
    if not templates:
        raise UserError("templates is empty: expected at least one, such as 'a photo of a {}.'")
    for template in templates:
        if "{}" not in template:
            raise UserError(f"template {template!r} has no {{}} for the class name: write it like 'a photo of a {{}}.'")


def read_lines(path: str | Path) -> list[str]:
    """A text file of class names or templates, one a line; blank lines may only end it.

    Raises:
        UserError: the file is missing, not UTF-8 text, empty, or has a blank line between others.
    """
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): expected a text file, one name a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8, one name a line") from error
    lines = [line.strip() for line in content.rstrip().split("\n")]
    if lines == [""]:
        raise UserError(f"{path}: the file is empty: expected one name a line")
    if "" in lines:
        # Skipped in silence, it would either hide a lost name or shift every label behind it.
        raise UserError(f"{path}: line {lines.index('') + 1} is blank: expected one name a line")
    return lines
