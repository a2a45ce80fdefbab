"""Which name belongs to which label: names from a config, matched with what the dataset calls its classes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openslip.data.class_names import alike, without_number, words
from openslip.errors import UserError
from openslip.inference.imagenet_classes import are_ids, imagenet_ids, imagenet_names
from openslip.inference.imagenet_prompts import imagenet_classnames
from openslip.inference.prompts import repeated, texts, texts_of

MAX_PAIRS = 40  # what is printed of a pairing
MAX_CROSSED = 10  # of ImageNet's 1000: lists by other authors name some classes as CLIP's list names their neighbours


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
    if numbered := [name for name in names if value is None and without_number(name) != name]:
        notices.append(
            f"class names: numbers in front stand in the prompts ({numbered[0]}); classnames=FILE gives others"
        )
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
        refuse_crossed(names, [*ids], MAX_CROSSED)
        places = [ids[folder] for folder in folders]
        return places, pairing([names[place] for place in places], folders, "ImageNet's label order")
    if len(names) != len(folders):
        raise UserError(unequal(names, folders, len(names) == len(ids) and any(map(ids.__contains__, folders))))
    refuse_crossed(names, folders, 0)
    return in_order, pairing(names, folders, "their order")


def refuse_crossed(names: list[str], folders: list[str], allowed: int) -> None:
    """Refuse a list in which more than `allowed` names are another folder's, while that folder is not given it."""
    known = list(map(known_as, folders))
    owners = defaultdict[str, list[int]](list)
    for i, own in enumerate(known):
        for name in own:
            owners[name].append(i)
    theirs = list(map(alike, names))
    crossed = [
        i
        for i, name in enumerate(theirs)
        if name in owners and i not in owners[name] and any(theirs[owner] not in known[owner] for owner in owners[name])
    ]
    if len(crossed) > allowed:
        shown = "; ".join(f"folder {folders[i]} would be {names[i]}" for i in crossed[:3])
        raise UserError(
            f"classnames: the folders' own names, in another order ({shown}; {len(crossed)} in all): list them in the "
            f"folders' order ({', '.join(folders[:3])}, ...), or give no classnames: folders are named by themselves"
        )


def pairing(names: list[str], folders: list[str], order: str) -> list[str]:
    """The lines that show which folder is given which name, without the folders' own."""
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
    """What a list may call a folder: its name, with or without a number in front, or CLIP's name of a WordNet id."""
    own = {alike(folder), alike(without_number(folder))}
    label = imagenet_ids().get(folder)
    return own if label is None else own | {alike(imagenet_classnames()[label])}


def unequal(names: list[str], folders: list[str], is_imagenet: bool) -> str:
    """The error where there are more folders than names, or fewer."""
    given = "1 name" if len(names) == 1 else f"{len(names)} names"
    counts = f"classnames: {given} for {len(folders)} class folders"
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
