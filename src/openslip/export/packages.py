"""Packages that a form needs, and the refusal of a form whose packages are not installed."""

from importlib.util import find_spec
from typing import NamedTuple

from openslip.errors import MissingPackage


class Packages(NamedTuple):
    """Packages, and how they are installed.

    Attributes:
        names: their import names.
        extra: the extra of OpenSLIP that installs them; None if OpenSLIP itself needs them.
    """

    names: tuple[str, ...] = ()
    extra: str | None = None


def refuse_missing(form: str, needs: Packages, *, is_check: bool = True) -> None:
    """Refuse a form whose packages are not installed, before anything is written.

    Args:
        form: name of the form.
        needs: the packages.
        is_check: whether only the check needs them.

    Raises:
        MissingPackage: a package is missing.
    """
    if missing := [name for name in needs.names if find_spec(name) is None]:
        package = f'"openslip[{needs.extra}]"' if needs.extra else " ".join(missing)
        purpose, hint = ("its check", ", or leave it out with --no-check") if is_check else ("writing it", "")
        raise MissingPackage(f"--to {form}: {purpose} needs {', '.join(missing)}; pip install {package}{hint}")
