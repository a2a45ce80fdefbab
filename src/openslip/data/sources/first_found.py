"""A dataset in whichever of its layouts is on this machine."""

from collections.abc import Callable

from openslip.data.source import Source
from openslip.errors import MissingData


def first_found(*, name: str, places: dict[str, Callable[[], Source]]) -> Source:
    """Return the source of the first place whose files exist; its `layout` says which place it is.

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
            source = build()
        except MissingData as error:
            absent.append(f"{error.place} ({layout})")
            continue
        settings = getattr(build, "keywords", {})  # such as root and split
        source.layout = f"{layout}: {', '.join(f'{key}={value}' for key, value in settings.items() if is_short(value))}"
        return source
    raise MissingData(
        f"{name}: no files found in any of: {', '.join(absent)}; openslip data get {name} says how to get them",
        absent[0] if absent else name,
    )


def is_short(setting: object) -> bool:
    """Whether a setting is a text or a mapping, such as a folder or the name of a split, not a list of class names."""
    return isinstance(setting, str | dict)
