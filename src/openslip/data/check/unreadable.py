"""Samples that cannot be read or decoded: counted by reason, the first shown, all of them listed in a file."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from openslip.durable import durable
from openslip.errors import UserError

SHOWN = 10


@dataclass
class Unreadable:
    """What was met so far.

    Attributes:
        reasons: how often each; those that differ in their numbers alone are one, in the words of the first.
        first: the first keys, each with its reason.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    first: list[tuple[str, str]] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, reason: str) -> None:
        self.reasons[self.kinds.setdefault(re.sub(r"\d+", "0", reason), reason)] += 1
        if len(self.first) < SHOWN:
            self.first.append((key, reason))


@contextmanager
def list_file(path: Path | None) -> Iterator[TextIO | None]:
    """A file to write the list in; it gets its name when the list is whole."""
    if path is None:
        yield None
        return
    try:
        with durable(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8")
            yield text
            text.detach()  # flushed, and left open for who opened it
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file") from error


def line(key: str, reason: str) -> str:
    return json.dumps({"key": key, "reason": reason}) + "\n"
