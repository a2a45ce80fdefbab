"""Reads the choices for a checkpoint from keys of a config: `activation`, `image_heads` and `text_heads`."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from openslip.errors import UserError

NAMES = ("activation", "image_heads", "text_heads")
OPTION = re.compile(r"--(activation|image-heads|text-heads)( (?=quickgelu|gelu|N\b|\d))?")
KEY = re.compile(rf"\b({'|'.join(NAMES)})=")


@contextmanager
def choices_in(options: Mapping[str, Any], prefix: str = "") -> Iterator[dict[str, Any]]:
    """Yield the choices of a config as arguments of `openslip.load`; errors then name keys instead of options.

    Args:
        options: the part of the config that holds the keys; an absent key counts as null.
        prefix: dotted key of this part with a last dot, such as `init_from.`; empty for the root.

    Raises:
        UserError: `activation` is neither a string nor null, or the code inside the context raises a UserError.
    """
    choices = {name: options.get(name) for name in NAMES}
    if not isinstance(choices["activation"], str | None):
        raise UserError(f"{prefix}activation={choices['activation']}: expected one word, e.g. quickgelu, or null")
    try:
        yield choices
    except UserError as error:
        text = OPTION.sub(lambda found: found[1].replace("-", "_") + "=", str(error))
        text = KEY.sub(rf"{prefix}\1=", text)
        if text == str(error):
            raise
        raise UserError(text) from error
