"""A dataset in whichever of its layouts is on this machine."""

from collections.abc import Callable

from openslip.data.source import Source
from openslip.errors import MissingData


def first_found(*, name: str, places: dict[str, Callable[[], Source]]) -> Source:
    """Return the source of the first place whose files exist.

    A place whose files exist but cannot be read is an error, so that no copy is skipped silently.

    Args:
        name: name of the dataset in `openslip data get`.
        places: layout name to a function that builds its source; in YAML, settings with `_partial_: true`.

    Raises:
        MissingData: no place has files.
        UserError: the first place with files is damaged.
    """
    absent = []
    for layout, build in places.items():
        try:
            return build()
        except MissingData as error:
            absent.append(f"{error.place} ({layout})")
    raise MissingData(
        f"{name}: no files found in any of: {', '.join(absent)}; openslip data get {name} says how to get them",
        absent[0] if absent else name,
    )
