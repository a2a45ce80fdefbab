"""Class names for zero-shot evaluation: names from a config, matched with the dataset's class folders."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openslip.data.class_names import alike, without_number, words
from openslip.errors import UserError
from openslip.evaluation.table_names import table_places
from openslip.inference.imagenet_classes import are_ids, imagenet_ids, imagenet_names
from openslip.inference.imagenet_prompts import imagenet_classnames
from openslip.inference.prompts import repeated, texts, texts_of
from openslip.inference.tables import class_table

MAX_PAIRS = 40  # printed pairs of folder and name
# Largest number of names that may belong to other folders, for ImageNet's 1000 classes only: in some lists, a class has
# the name that CLIP's list gives to another, similar class.
MAX_CROSSED = 10


@dataclass(frozen=True)
class ClassNames:
    """The names of a source's labels, and how they were chosen from the given list.

    Attributes:
        names: class names as they appear in prompts, in label order; of several names of a class, the first.
        prompted: per class, all its names, whose prompts are averaged; mostly one.
        places: index of each name in the given list.
        num_given: number of names in the given list.
        num_known: number of classes of the whole dataset: 1000 for ImageNet's ids, else `num_given`.
        notices: lines to print for the user.
    """

    names: list[str]
    prompted: list[tuple[str, ...]]
    places: list[int]
    num_given: int
    num_known: int
    notices: list[str]


def class_names(
    value: Iterable[Any] | str | Path | None,
    classes: Sequence[str] | None,
    underscores: str = "space",
    *,
    labels_are_sorted_names: bool = True,
) -> ClassNames:
    """Read class names and match them with the source's class folders.

    Args:
        value: a list, a text file, the name of a published table such as `imagenet`, or None for the source's own
            names.
        classes: the source's names of its labels, such as its folders; None if it only has label numbers.
        underscores: `space` reads `_` in a name as a space, `keep` leaves it; tables are taken as published.
        labels_are_sorted_names: as in `Source`; decides whether a published table is matched in any order.

    Raises:
        UserError: there are no names, the numbers of names and folders differ, or a folder is paired with another's
            name; or the source's classes are not those of the published table.
    """
    if isinstance(value, str) and (table := class_table(value)) is not None:
        places = table_places(table, classes, labels_are_sorted_names=labels_are_sorted_names)
        prompted = [table.names[place] for place in places]
        names = [of_class[0] for of_class in prompted]
        return ClassNames(names, prompted, places, len(table.names), len(table.names), shared(names))
    folders = None if classes is None else list(classes)
    if value is None and folders is None:
        raise UserError("classnames=null: this dataset only has label numbers; give a text file or a list of names")
    given = list(folders or ()) if value is None else texts_of(value, "classnames")
    places, notices = match(given, folders)
    chosen, num_known = [given[place] for place in places], len(given)
    if are_ids(chosen):  # captions do not contain ids such as n01440764, so a text tower cannot use them
        chosen, num_known = imagenet_names(chosen), len(imagenet_ids())
        notices.append("class names are WordNet ids of ImageNet: CLIP's names of these classes are used")
    names = [words(name, underscores) for name in chosen]
    if underscores == "space" and any("_" in name for name in chosen):
        notices.append("class names: `_` is read as a space (underscores=keep leaves it)")
    if numbered := [name for name in names if value is None and without_number(name) != name]:
        notices.append(
            f"class names: leading numbers become part of the prompts ({numbered[0]}); classnames=FILE gives others"
        )
    notices += shared(names)
    return ClassNames(texts(names, "classnames"), [(name,) for name in names], places, len(given), num_known, notices)


def shared(names: list[str]) -> list[str]:
    """Return notices, at most one, of names that several labels have."""
    twice = repeated(names)
    return [f"class names: {', '.join(twice)} name several labels each, which share the probability"] if twice else []


def match(names: list[str], folders: list[str] | None) -> tuple[list[int], list[str]]:
    """Return the index of each folder's name in the list, and notices that show pairs matched only by their order."""
    in_order = list(range(len(names)))
    if folders is None or folders == names:
        return in_order, []
    ids = imagenet_ids()
    if len(names) == len(ids) and all(folder in ids for folder in folders):
        refuse_crossed(names, [*ids], MAX_CROSSED)
        places = [ids[folder] for folder in folders]
        return places, pairing([names[place] for place in places], folders, "ImageNet's label order")
    if len(names) != len(folders):
        raise UserError(unequal(names, folders, len(names) == len(ids) and any(map(ids.__contains__, folders))))
    refuse_crossed(names, folders, 0)
    return in_order, pairing(names, folders, "their order")


def refuse_crossed(names: list[str], folders: list[str], allowed: int) -> None:
    """Refuse a list in another order than the folders: it gives folders the names of other folders.

    Args:
        names: given class names, one per folder.
        folders: names of the class folders, in label order.
        allowed: how many folders may get the name of another folder. If this is above 0, such a name counts only if
            that other folder's own name in the list does not match it either.
    """
    known = list(map(known_as, folders))
    owners = defaultdict[str, list[int]](list)
    for i, names_of_folder in enumerate(known):
        for name in names_of_folder:
            owners[name].append(i)
    theirs = list(map(alike, names))
    crossed = [
        i
        for i, name in enumerate(theirs)
        if name in owners
        and i not in owners[name]
        and (not allowed or any(theirs[owner] not in known[owner] for owner in owners[name]))
    ]
    if len(crossed) > allowed:
        shown = "; ".join(f"folder {folders[i]} would be {names[i]}" for i in crossed[:3])
        how = "some of them repeated" if not allowed and len(set(theirs)) < len(theirs) else "in another order"
        raise UserError(
            f"classnames: the folders' own names, {how} ({shown}; {len(crossed)} in all): list them in the "
            f"folders' order ({', '.join(folders[:3])}, ...), or omit classnames to use the folders' names"
        )


def pairing(names: list[str], folders: list[str], order: str) -> list[str]:
    """Return notices, at most one, that list which folder is paired with which name unless they match by name."""
    pairs = [
        f"  {label}: {folder} -> {name}"
        for label, (folder, name) in enumerate(zip(folders, names, strict=True))
        if alike(name) not in known_as(folder)
    ]
    if not pairs:
        return []
    more = [f"  ... {len(pairs) - MAX_PAIRS} more"] if len(pairs) > MAX_PAIRS else []
    matched = f", of which {len(names) - len(pairs)} match by name" if len(pairs) < len(names) else ""
    title = f"class names are paired with the class folders in {order}{matched}:"
    return ["\n".join([title, *pairs[:MAX_PAIRS], *more])]


def known_as(folder: str) -> set[str]:
    """Return the names that match a folder: its own, with and without leading number, and CLIP's for its WordNet id."""
    itself = {alike(folder), alike(without_number(folder))}
    label = imagenet_ids().get(folder)
    return itself if label is None else itself | {alike(imagenet_classnames()[label])}


def unequal(names: list[str], folders: list[str], is_imagenet: bool) -> str:
    """Return the error message for numbers of names and folders that differ."""
    given = "1 name" if len(names) == 1 else f"{len(names)} names"
    counts = f"classnames: {given} for {len(folders)} class folders"
    if is_imagenet:
        other = [folder for folder in folders if folder not in imagenet_ids()]
        return (
            f"{counts}, of which {', '.join(other[:3])} are no WordNet ids of ImageNet's classes: move them elsewhere"
        )
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
        "or omit classnames to use the folders' names"
    )
