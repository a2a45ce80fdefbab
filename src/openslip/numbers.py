"""Numbers as a person means them: for Python `true` is 1 as well."""

from typing import Any


def is_number(value: Any) -> bool:
    """Whole or not."""
    return isinstance(value, int | float) and not isinstance(value, bool)
