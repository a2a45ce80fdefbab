"""What counts as a caption of a sample: one policy per source; among several, training draws uniformly.

A policy is called with the text of `KEY.txt` (empty where there is none) and the content of `KEY.json` (likewise), and
returns texts. Its `repr` is part of the index's identity, so policies are frozen dataclasses.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

CaptionPolicy = Callable[[str, dict[str, Any]], Iterable[Any]]


@dataclass(frozen=True)
class UniformCaption:
    """All there are: the txt, then `captions` and `caption` of the json."""

    def __call__(self, txt: str, fields: dict[str, Any], /) -> list[Any]:
        listed = fields.get("captions")
        return [txt, *(listed if isinstance(listed, list) else [listed]), fields.get("caption")]


@dataclass(frozen=True)
class FirstCaption:
    """The first of those that is not empty."""

    def __call__(self, txt: str, fields: dict[str, Any], /) -> list[Any]:
        return [*usable(UniformCaption()(txt, fields))[:1]]


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
        found = []
        for name in self.fields:
            value = fields.get(name)
            found += value if isinstance(value, list) else [value]
        return found


def usable(texts: Iterable[Any]) -> tuple[str, ...]:
    """Stripped, without repetitions and without what is empty or no text: an empty choice is thus drawn again."""
    return tuple(dict.fromkeys(text for text in (t.strip() for t in texts if isinstance(t, str)) if text))


def read_captions(policy: CaptionPolicy, txt: bytes, fields: bytes) -> tuple[str, ...]:
    """The captions in a sample's members.

    Raises:
        ValueError: not JSON.
    """
    content = json.loads(fields.decode("utf-8", "replace")) if fields else {}
    return usable(policy(txt.decode("utf-8", "replace"), content if isinstance(content, dict) else {}))
