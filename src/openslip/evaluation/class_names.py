"""Which name belongs to which label: names from a config, matched with what the dataset calls its classes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openslip.data.class_names import alike, words
from openslip.errors import UserError
from openslip.inference.imagenet_classes import are_ids, imagenet_ids, imagenet_names
from openslip.inference.prompts import repeated, texts, texts_of

MAX_PAIRS = 40  # what is printed of a pairing


@dataclass(frozen=True)
class ClassNames:
    """The names of a source's labels.

    Attributes:
        names: as they stand in prompts, in the order of the labels.
        places: of these names in the list that was given.
        num_given: names in that list.
        num_known: classes of the whole dataset, as far as the list or ImageNet's ids say it.
        notices: what the user should know.
    """

    names: list[str]
    places: list[int]
    num_given: int
    num_known: int
    notices: list[str]


def class_names(
    value: Iterable[Any] | str | Path | None, classes: Sequence[str] | None, underscores: str = "space"
) -> ClassNames:
    """Read class names and match them with a source's own.

    Args:
        value: a list, a text file, `imagenet`, or None for the source's own names.
        classes: what the source calls its labels, such as its folders; None where it has numbers alone.
        underscores: `space` reads `_` in a name as a space, `keep` leaves it.

    Raises:
        UserError: another number of names than of folders, or the folders' own names in another order.
    """
    folders = None if classes is None else list(classes)
    if value is None and folders is None:
        raise UserError("classnames=null: this dataset has label numbers alone; give a text file or a list of names")
    given = list(folders or ()) if value is None else texts_of(value, "classnames")
    places, notices = match(given, folders)
    chosen, num_known = [given[place] for place in places], len(given)
    if are_ids(chosen):  # no words: a prompt with n01440764 would mean nothing
        chosen, num_known = imagenet_names(chosen), len(imagenet_ids())
        notices.append("class names are WordNet ids of ImageNet: CLIP's names of these classes are used")
    names = [words(name, underscores) for name in chosen]
    if underscores == "space" and any("_" in name for name in chosen):
        notices.append("class names: `_` is read as a space (underscores=keep leaves it)")
    if twice := repeated(names):
        notices.append(f"class names: {', '.join(twice)} stand for several labels each, which share the probability")
    return ClassNames(texts(names, "classnames"), places, len(given), num_known, notices)


def match(names: list[str], folders: list[str] | None) -> tuple[list[int], list[str]]:
    """For each folder the place of its name in the list, and a notice that shows what only the order says."""
    in_order = list(range(len(names)))
    if folders is None or folders == names:
        return in_order, []
    ids = imagenet_ids()
    if len(names) == len(ids) and all(folder in ids for folder in folders):
        return [ids[folder] for folder in folders], []
    if len(names) != len(folders):
        raise UserError(unequal(names, folders, len(names) == len(ids) and any(map(ids.__contains__, folders))))
    ours, theirs = list(map(alike, folders)), list(map(alike, names))
    # A name that is another folder's, while that folder is not given it.
    crossed = [
        i for i, name in enumerate(theirs) if name in ours and name != ours[i] and theirs[ours.index(name)] != name
    ]
    if crossed:
        shown = "; ".join(f"folder {folders[i]} would be {names[i]}" for i in crossed[:3])
        raise UserError(
            f"classnames: the folders' own names, in another order ({shown}; {len(crossed)} in all): list them in the "
            f"folders' order ({', '.join(folders[:3])}, ...), or give no classnames: folders are named by themselves"
        )
    if ours == theirs:
        return in_order, []
    pairs = [f"  {label}: {folder} -> {name}" for label, (folder, name) in enumerate(zip(folders, names, strict=True))]
    more = [f"  ... {len(pairs) - MAX_PAIRS} more"] if len(pairs) > MAX_PAIRS else []
    title = "class names are paired with the class folders in their order:"
    return in_order, ["\n".join([title, *pairs[:MAX_PAIRS], *more])]


def unequal(names: list[str], folders: list[str], is_imagenet: bool) -> str:
    """The error where there are more folders than names, or fewer."""
    counts = f"classnames: {len(names)} names for {len(folders)} class folders"
    if is_imagenet:
        other = [folder for folder in folders if folder not in imagenet_ids()]
        return f"{counts}, of which {', '.join(other[:3])} are no WordNet ids of ImageNet's classes: move them away"
    ours, theirs = set(map(alike, folders)), set(map(alike, names))
    unnamed = [folder for folder in folders if alike(folder) not in theirs]
    missing = [name for name in names if alike(name) not in ours]
    detail = ""
    if len(missing) < len(names):
        detail = "".join(
            f"; {what}: {', '.join(values[:3])}{', ...' * (len(values) > 3)}"
            for what, values in (("no folder for", missing), ("no name for", unnamed))
            if values
        )
    return (
        f"{counts}{detail}: expected one name per folder, in the folders' order ({', '.join(folders[:3])}, ...); "
        "or give no classnames: folders are named by themselves"
    )
