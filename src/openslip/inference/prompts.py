"""Class names, prompt templates and class embeddings. Radford et al. 2021, arXiv:2103.00020, section 3.1.4."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.data.captions.decoding import read_text
from openslip.data.class_names import alike
from openslip.distributed import notice_once
from openslip.errors import UserError
from openslip.inference.tables import class_table, table_names, template_table

# Lines of YAML, JSON or CSV, and lines in quotation marks: their markup would become part of the prompts.
MARKED_UP = re.compile(r"""- |[\[{"']|n?\d+\s*[,;:=\t]|.*\t""")
PLACEHOLDER = re.compile(r"\{[\w.:!]+\}")  # `{label}` or `{0}` of a format string, which would stay in the prompts
EXAMPLES = {"templates": "a photo of a {}."}


def class_embeddings(
    encode_text: Callable[[list[str]], Float[Tensor, "texts embed"]],
    classnames: Iterable[str | int],
    templates: Iterable[str | int],
) -> Float[Tensor, "classes embed"]:
    """Compute one unit-length embedding per class: the mean of its prompts' unit-length features, normalised again.

    Args:
        encode_text: function from texts to unit-length features, such as `Bundle.encode_text`.
        classnames: names of the classes, in label order.
        templates: prompts with `{}` where the class name is inserted.

    Raises:
        UserError: there is no class or no template, a template lacks `{}`, or one string was given instead of a list.
    """
    names = [(name,) for name in texts(classnames, "classnames")]
    return ensemble(template_features(encode_text, names, texts(templates, "templates")))


def template_features(
    encode_text: Callable[[list[str]], Float[Tensor, "texts embed"]],
    names: Sequence[Sequence[str]],
    templates: Sequence[str],
) -> Float[Tensor, "templates classes embed"]:
    """Return one feature per template and class: the mean of the unit-length features of all names of the class.

    The mean of a class is thus over all its names times all templates, as in facebookresearch/SLIP eval_zeroshot.py.

    Args:
        encode_text: function from texts to unit-length features.
        names: names of each class, in label order.
        templates: prompts with `{}` where the name is inserted.
    """
    # Template by template, because prompts of one template begin alike and are encoded faster together.
    prompts = [template.replace("{}", name) for template in templates for of_class in names for name in of_class]
    features = encode_text(prompts)
    features = features.view(len(templates), -1, features.shape[-1])  # [templates, names, embed]
    if features.shape[1] > len(names):
        of_classes = features.split(list(map(len, names)), dim=1)
        features = torch.stack([of_class.mean(dim=1) for of_class in of_classes], dim=1)
    return features


def ensemble(features: Float[Tensor, "templates classes embed"]) -> Float[Tensor, "classes embed"]:
    """Return the mean over templates of each class, normalised."""
    return F.normalize(features.mean(dim=0), dim=-1)


def texts(values: Iterable[Any], key: str) -> list[str]:
    """Check class names, labels or templates and return them as a list of strings; repeated templates are dropped.

    Args:
        values: any ordered iterable; integers become text, because a command line parses `[0,1]` as numbers.
        key: name of the values in error messages: `classnames`, `labels` or `templates`.

    Raises:
        UserError: the list is empty or unordered, or it is one string, which would be split into letters. Or a value
            is blank or not text. Or a template has no `{}`, or has another placeholder.
    """
    example = EXAMPLES.get(key, "cat")
    if isinstance(values, str | bytes):
        given = values if isinstance(values, str) else values.decode(errors="replace")
        parts = [given] if "{}" in given else [part.strip() for part in given.split(",") if part.strip()]
        raise UserError(f"{key}={given[:60]!r} is one string, not a list: write {parts[:5] or [example]}")
    if isinstance(values, Mapping | Set):
        kind = type(values).__name__
        raise UserError(f"{key} is a {kind}: expected a list, in the order of the labels, such as [{example!r}]")
    listed = list(values)
    if not listed:
        raise UserError(f"{key} is empty: expected at least one, such as {example!r}")
    for place, value in enumerate(listed):
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise UserError(f"{key}[{place}] is {value!r}: expected text; in a config, put it in quotes")
        if not str(value).strip():
            raise UserError(f"{key}[{place}] is blank: expected text, such as {example!r}")
        if key == "templates" and "{}" not in str(value):
            raise UserError(f"template {value!r} has no {{}} for the class name: write it like {example!r}")
        if key == "templates" and (other := PLACEHOLDER.search(str(value))):
            raise UserError(f"template {value!r}: {other[0]} would stay in the prompts; write {{}} for the class name")
    given = [str(value) for value in listed]
    if key == "templates" and (twice := repeated(given)):
        notice_once(f"templates: {', '.join(twice)} given several times and used once")
        given = list({alike(template): template for template in reversed(given)}.values())[::-1]
    return given


def templates_of(value: Iterable[Any] | str | Path) -> list[str]:
    """Read prompt templates that are given from Python: one template, a list, a set, a text file, or a table's name.

    Args:
        value: a string with `{}` is one template; a set is sorted, so that results do not depend on its order; all
            else is read as by `texts_of`.

    Raises:
        UserError: the value is none of these, or `texts_of` refuses its content.
    """
    if isinstance(value, str) and "{}" in value:
        value = [value]
    elif isinstance(value, Set):
        value = sorted(value, key=str)
    return texts_of(value, "templates")


def texts_of(value: Iterable[Any] | str | Path, key: str) -> list[str]:
    """Read class names or templates from a config value: a list, a text file, or the name of a published table.

    Args:
        value: the list, the path of a text file, or a name in `table_names`, which takes precedence over a file with
            that name.
        key: `classnames` or `templates`.

    Raises:
        UserError: the value is none of these, or `texts` or `read_lines` refuses its content.
    """
    if not isinstance(value, str | Path):
        return texts(value, key)
    if (published := table_of(str(value), key)) is not None:
        return published
    file = Path(value).expanduser()
    if not file.is_file():
        if "{}" in str(value):
            raise UserError(f"{key}={value} is one string, not a list: write {key}=['{value}']")
        near = " or ".join(sorted(get_close_matches(str(value), table_names(key)))) or "a dataset's name (food101)"
        raise UserError(
            f"{key}={value}: no such file; expected a text file with one per line, {near}, or a list such as "
            f"[{value if ',' in str(value) else EXAMPLES.get(key, 'cat,dog')!s}]"
        )
    return texts(read_lines(file, key), key)


def table_of(name: str, key: str) -> list[str] | None:
    """Return a published table of class names (the first of each class) or templates; None if there is none."""
    if key == "templates":
        return template_table(name)
    table = class_table(name)
    return None if table is None else [names[0] for names in table.names]


def repeated(names: Sequence[str]) -> list[str]:
    """List names that occur more than once, in their first spelling; case, white space and underscores are ignored."""
    counts = Counter(map(alike, names))
    first = {alike(name): name for name in reversed(names)}
    return [first[key] for key, count in counts.items() if count > 1]


def read_lines(path: str | Path, key: str = "classnames") -> list[str]:
    """Read a text file of class names or templates, one per line; blank lines are accepted only at its end.

    Raises:
        UserError: the file is missing, empty, not text, not one name per line, or has a blank line between others.
    """
    lines = all_lines(path, key)
    if lines == [""]:
        raise UserError(f"{path}: the file is empty: expected one name per line")
    if "" in lines:
        # Skipping it silently could hide a missing name, which shifts every label after it.
        raise UserError(f"{path}: line {lines.index('') + 1} is blank: expected one name per line")
    return lines


def all_lines(path: str | Path, key: str = "labels") -> list[str]:
    """Return the stripped lines of a text file, without blank lines at its end.

    Raises:
        UserError: the file is missing, is neither UTF-8 nor marked by a byte-order mark, or is not one name per line.
    """
    try:
        content = read_text(Path(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): expected text with one name per line") from error
    lines = [line.strip() for line in content.rstrip().split("\n")]
    one_line = len(lines) == 1 and key != "templates" and re.search("[,;|]", lines[0])
    if one_line or (content.strip() and all(MARKED_UP.match(line) for line in lines if line)):
        raise UserError(f"{path}: its lines are like {lines[0][:60]!r}: expected plain text, one name per line")
    return lines
