"""Names of class folders: their sort order, which defines the labels, and the words that stand in prompts."""

import re
import unicodedata
from collections.abc import Iterable

from openslip.errors import UserError


def label_order(folders: Iterable[str]) -> list[str]:
    """Sort class folders: as numbers if all names are whole numbers, else as text, which is torchvision's order."""
    names = list(folders)
    return sorted(names, key=(lambda name: (int(name), name)) if all(map(str.isdecimal, names)) else None)


def words(name: str, underscores: str) -> str:
    """Turn a class name into the words that stand in a prompt.

    Args:
        name: name of a class folder or an entry of a list of class names.
        underscores: `space` replaces `_` by a space, `keep` keeps it.
    """
    if underscores not in ("space", "keep"):
        raise UserError(f"underscores={underscores}: expected space (`_` is read as a space) or keep")
    return " ".join((name.replace("_", " ") if underscores == "space" else name).split())


def alike(name: str) -> str:
    """Normalise a name, so that case, white space, underscores and Unicode form (NFC, NFD) make no difference."""
    return unicodedata.normalize("NFC", words(name, "space")).casefold()


def letters(name: str) -> str:
    """Reduce a name to its letters and digits in lower case: `ApplyEyeMakeup` and `Apply Eye Makeup` are one class."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))


def without_number(name: str) -> str:
    """Remove the number or WordNet id in front of a class name: `001.Sooty_Albatross`, `n02085620-Chihuahua`."""
    return re.sub(r"^(\d+|n\d{8})[\s._-]+(?=\D)", "", name)
