"""Caption policies: each source has one, which decides what its captions are; training draws uniformly among them.

A policy is called with the text of `KEY.txt` and the content of `KEY.json` (each empty if the file is missing), and
returns the captions. Its `repr` is part of the index's identity, so policies are frozen dataclasses.
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
    """Policy that takes all captions: the text of KEY.txt, then `captions` and `caption` of KEY.json."""

    def __call__(self, txt: str, fields: dict[str, Any], /) -> list[Any]:
        groups = [txt], listed(fields.get("captions")), listed(fields.get("caption"))
        return [*merged(*groups), *not_texts(chain(*groups))]


@dataclass(frozen=True)
class FirstCaption:
    """Policy that takes the first caption of `UniformCaption`; one that can be decoded comes before one that cannot."""

    def __call__(self, txt: str, fields: dict[str, Any], /) -> list[Any]:
        values = UniformCaption()(txt, fields)
        return [*sorted(usable(values), key=is_damaged)[:1], *not_texts(values)]


@dataclass(frozen=True)
class CaptionFields:
    """Policy that takes fields of KEY.json: `title` and `description` for YFCC, as published SLIP does (datasets.py).

    Args:
        fields: names of fields that hold a string or a list of strings.
    """

    fields: tuple[str, ...]

    def __init__(self, *, fields: list[str]) -> None:
        object.__setattr__(self, "fields", tuple(fields))

    def __call__(self, txt: str, fields: dict[str, Any], /) -> list[Any]:
        return [text for name in self.fields for text in listed(fields.get(name))]


@dataclass(frozen=True)
class KeepEqual:
    """Policy that keeps repetitions among the captions of another policy; otherwise `read_captions` drops them."""

    policy: CaptionPolicy

    def __call__(self, txt: str, fields: dict[str, Any], /) -> Iterable[Any]:
        return self.policy(txt, fields)


def listed(value: Any) -> list[Any]:
    """Flatten the value of a field, which is a text or a (nested) list of texts."""
    return [text for part in value for text in listed(part)] if isinstance(value, list) else [value]


def merged(*groups: Iterable[Any]) -> list[str]:
    """Merge the usable texts of all groups; each text occurs as often as in the group that repeats it most."""
    texts: list[str] = []
    for group in map(usable, groups):
        counted = Counter(texts)
        for text in group:
            counted[text] -= 1
            if counted[text] < 0:
                texts.append(text)
    return texts


def usable(texts: Iterable[Any]) -> list[str]:
    """Strip texts, and drop empty ones and values that are not strings, so that training never draws an empty text."""
    return [text for text in (t.strip() for t in texts if isinstance(t, str)) if text]


def not_texts(values: Iterable[Any]) -> list[Any]:
    """Find values that stand in place of captions but are not strings, such as numbers; null is ignored."""
    return [value for value in values if not isinstance(value, str | None)]


def written_captions(policy: CaptionPolicy, txt: bytes, fields: bytes) -> tuple[list[str], bool]:
    """Extract a sample's captions, including those that cannot be decoded, and whether other values are not strings.

    Args:
        policy: decides what counts as a caption.
        txt: content of KEY.txt, empty if there is none.
        fields: content of KEY.json, empty if there is none.

    Raises:
        ValueError: `fields` is not JSON.
    """
    content = json.loads(text_of(fields)) if fields else {}
    values = list(policy(text_of(txt), content if isinstance(content, dict) else {}))
    texts = usable(values)
    return texts if isinstance(policy, KeepEqual) else [*dict.fromkeys(texts)], bool(not_texts(values))


def read_captions(policy: CaptionPolicy, txt: bytes, fields: bytes) -> tuple[str, ...]:
    """Extract a sample's captions as `written_captions` does, without those that cannot be decoded.

    Raises:
        ValueError: `fields` is not JSON.
    """
    return tuple(text for text in written_captions(policy, txt, fields)[0] if not is_damaged(text))
