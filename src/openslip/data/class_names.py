"""Class folders: their order, which is that of the labels, and the words that their names stand for."""

import re
import unicodedata
from collections.abc import Iterable

from openslip.errors import UserError


def label_order(folders: Iterable[str]) -> list[str]:
    """Sort class folders: as numbers where all names are whole numbers, else as text, which is torchvision's order."""
    names = list(folders)
    return sorted(names, key=(lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else None)


def words(name: str, underscores: str) -> str:
    """A class's name as it stands in a prompt.

    Args:
        name: of a folder, or from a list.
        underscores: `space` reads `_` as a space, `keep` leaves it.
    """
    if underscores not in ("space", "keep"):
        raise UserError(f"underscores={underscores}: expected space (`_` is read as a space) or keep")
    return " ".join((name.replace("_", " ") if underscores == "space" else name).split())


def alike(name: str) -> str:
    """Equal for names that differ in case, white space, underscores and Unicode's form (NFC, NFD) alone."""
    return unicodedata.normalize("NFC", words(name, "space")).casefold()


def without_number(name: str) -> str:
    """A class folder's name without a number or WordNet id in front: `001.Sooty_Albatross`, `n02085620-Chihuahua`."""
    return re.sub(r"^(\d+|n\d{8})[\s._-]+(?=\D)", "", name)
