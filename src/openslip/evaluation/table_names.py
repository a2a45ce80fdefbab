"""Strict matching of a dataset's classes with a published table: by name, or by name and order."""

from collections.abc import Sequence

from openslip.data.class_names import letters, without_number
from openslip.errors import UserError
from openslip.inference.tables import ClassTable

NUM_SHOWN = 3  # classes of each side in an error message


def table_places(table: ClassTable, classes: Sequence[str] | None, *, labels_are_sorted_names: bool) -> list[int]:
    """Return the class of the table for every label of a source.

    Args:
        table: the published classes.
        classes: the source's names of its labels, in label order; None if it only has label numbers, which then count
            in the published order.
        labels_are_sorted_names: whether the source numbers its class folders itself, so that their order says nothing.
            Names are then matched in any order. Otherwise label numbers come from the dataset's files, and the names
            must also be in a published order.

    Raises:
        UserError: a class is missing, unknown or at another place.
    """
    if classes is None:
        return list(range(len(table.names)))
    known = [set(map(letters, spellings)) for spellings in table.spellings]
    if is_numbered(classes, len(known), known):
        return numbered(table, classes, labels_are_sorted_names)
    if labels_are_sorted_names:
        return by_name(table, classes, known)
    for order in published_orders(table, known):
        if len(classes) == len(order) and all(
            spells(known[place], name) for place, name in zip(order, classes, strict=True)
        ):
            return order
    raise mismatch(table, classes, known)


def spells(known: set[str], name: str) -> bool:
    """Tell whether a name of a dataset is one of a class's spellings, with or without a leading number."""
    return letters(name) in known or letters(without_number(name)) in known


def is_numbered(classes: Sequence[str], count: int, known: list[set[str]]) -> bool:
    """Tell whether the classes are the label numbers from 0 or from 1, and the table's names are no numbers."""
    if not all(map(str.isdecimal, classes)) or any(map(str.isdecimal, set[str]().union(*known))):
        return False
    return sorted(map(int, classes)) in (list(range(count)), list(range(1, count + 1)))


def numbered(table: ClassTable, classes: Sequence[str], labels_are_sorted_names: bool) -> list[int]:
    """Return the labels that numbers name; refuse them if they could count in another published order."""
    if table.other_order:
        raise UserError(
            f"classnames={table.name}: the dataset's classes are numbers ({shown(classes)}), and there are two "
            f"published label orders ({shown([names[0] for names in table.names])} and {shown(table.other_order)}): "
            "name its classes"
        )
    numbers = [int(name) for name in classes]
    places = [number - min(numbers) for number in numbers]
    if not labels_are_sorted_names and places != sorted(places):
        raise UserError(
            f"classnames={table.name}: the dataset's classes are numbers in another order ({shown(classes)}): expected "
            f"{shown(sorted(classes, key=int))}"
        )
    return places


def by_name(table: ClassTable, classes: Sequence[str], known: list[set[str]]) -> list[int]:
    """Match classes with the table in any order, one to one."""
    places = [[place for place, names in enumerate(known) if spells(names, name)] for name in classes]
    is_one_to_one = all(len(of_class) == 1 for of_class in places) and len({p[0] for p in places}) == len(places)
    if not is_one_to_one or not (table.allows_some or len(places) == len(known)):
        raise mismatch(table, classes, known)
    return [of_class[0] for of_class in places]


def published_orders(table: ClassTable, known: list[set[str]]) -> list[list[int]]:
    """List the published label orders of a table, each as places in the table."""
    other = [next(i for i, names in enumerate(known) if spells(names, name)) for name in table.other_order]
    return [list(range(len(known))), *([other] if other else [])]


def mismatch(table: ClassTable, classes: Sequence[str], known: list[set[str]]) -> UserError:
    """Return the error that shows both sides of what is missing, unknown, repeated or at another place."""
    published = [names[0] for names in table.names]
    unknown = [name for name in classes if not any(spells(names, name) for names in known)]
    missing = [published[i] for i, names in enumerate(known) if not any(spells(names, name) for name in classes)]
    facts = []
    if missing and not (table.allows_some and unknown):
        facts.append(f"missing in the dataset: {shown(missing)}")
    if unknown:
        facts.append(f"not published: {shown(unknown)}")
    if facts:
        both = f"the dataset has {shown(classes)}, the table {shown(published)}"
        what = f"{len(classes)} classes for {len(published)} published ones; {'; '.join([*facts, both])}"
    elif len(classes) != len(published):
        what = f"{len(classes)} classes for {len(published)} published ones: some of them repeated"
    else:
        moved = [i for i, name in enumerate(classes) if not spells(known[i], name)]
        pairs = "; ".join(f"label {i} is {classes[i]}, published {published[i]}" for i in moved[:NUM_SHOWN])
        what = f"the dataset's classes are in another order than the published ones ({pairs}; {len(moved)} in all)"
    return UserError(
        f"classnames={table.name}: {what}: correct the dataset, or give names of your own with classnames=FILE"
    )


def shown(names: Sequence[str]) -> str:
    """Return the first names, and how many follow."""
    more = f", ... {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
