"""Numbers as a person means them: for Python `true` is 1 as well."""

from typing import Any


def is_number(value: Any) -> bool:
    """Whole or not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """A count, a seed, a size."""
    return isinstance(value, int) and not isinstance(value, bool)
