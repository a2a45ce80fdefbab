"""What counts as a caption of a sample: one policy per source; among several, training draws uniformly.

A policy is called with the text of `KEY.txt` (empty where there is none) and the content of `KEY.json` (likewise), and
returns texts. Its `repr` is part of the index's identity, so policies are frozen dataclasses.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from openslip.data.captions.decoding import is_damaged, text_of

CaptionPolicy = Callable[[str, dict[str, Any]], Iterable[Any]]


@dataclass(frozen=True)
class UniformCaption:
    """All there are: the txt, then `captions` and `caption` of the json."""

    def __call__(self, txt: str, fields: dict[str, Any], /) -> list[Any]:
        groups = [txt], listed(fields.get("captions")), listed(fields.get("caption"))
        return [*merged(*groups), *not_texts(chain(*groups))]


@dataclass(frozen=True)
class FirstCaption:
    """The first of those that is not empty."""

    def __call__(self, txt: str, fields: dict[str, Any], /) -> list[Any]:
        values = UniformCaption()(txt, fields)
        return [*sorted(usable(values), key=is_damaged)[:1], *not_texts(values)]


@dataclass(frozen=True)
class CaptionFields:
    """Named fields of the json: `title` and `description` for YFCC, as published SLIP (datasets.py) draws them.

    Args:
        fields: names of strings or of lists of strings.
    """

    fields: tuple[str, ...]

    def __init__(self, *, fields: list[str]) -> None:
        object.__setattr__(self, "fields", tuple(fields))

    def __call__(self, txt: str, fields: dict[str, Any], /) -> list[Any]:
        return [text for name in self.fields for text in listed(fields.get(name))]


@dataclass(frozen=True)
class KeepEqual:
    """Another policy's captions with their repetitions, which `read_captions` drops otherwise."""

    policy: CaptionPolicy

    def __call__(self, txt: str, fields: dict[str, Any], /) -> Iterable[Any]:
        return self.policy(txt, fields)


def listed(value: Any) -> list[Any]:
    """The value of a field that holds a text or a list of texts, lists in lists included."""
    return [text for part in value for text in listed(part)] if isinstance(value, list) else [value]


def merged(*groups: Iterable[Any]) -> list[str]:
    """The usable texts of all groups; one that several groups hold counts as often as in the group with most of it."""
    texts: list[str] = []
    for group in map(usable, groups):
        counted = Counter(texts)
        for text in group:
            counted[text] -= 1
            if counted[text] < 0:
                texts.append(text)
    return texts


def usable(texts: Iterable[Any]) -> list[str]:
    """Stripped, without what is empty or no text: an empty choice is thus drawn again."""
    return [text for text in (t.strip() for t in texts if isinstance(t, str)) if text]


def not_texts(values: Iterable[Any]) -> list[Any]:
    """Values in the place of captions that are not strings, such as numbers; null is ignored."""
    return [value for value in values if not isinstance(value, str | None)]


def written_captions(policy: CaptionPolicy, txt: bytes, fields: bytes) -> tuple[list[str], bool]:
    """The captions in a sample's members, those that cannot be decoded included; and whether others are no text.

    Raises:
        ValueError: not JSON.
    """
    content = json.loads(text_of(fields)) if fields else {}
    values = list(policy(text_of(txt), content if isinstance(content, dict) else {}))
    texts = usable(values)
    return texts if isinstance(policy, KeepEqual) else [*dict.fromkeys(texts)], bool(not_texts(values))


def read_captions(policy: CaptionPolicy, txt: bytes, fields: bytes) -> tuple[str, ...]:
    """The captions in a sample's members; one in an unknown encoding is none.

    Raises:
        ValueError: not JSON.
    """
    return tuple(text for text in written_captions(policy, txt, fields)[0] if not is_damaged(text))
