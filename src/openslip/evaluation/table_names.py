"""Strict matching of a dataset's classes with a published table: by name, or by name and order."""

from collections import defaultdict
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
            in the published order, if there is only one.
        labels_are_sorted_names: whether the source numbers its class folders itself, so that their order says nothing.
            Names are then matched in any order. Otherwise label numbers come from the dataset's files, and the names
            must also be in a published order.

    Raises:
        UserError: a class is missing, unknown or at another place, or numbers have no names and two published orders.
    """
    if classes is None:
        refuse_two_orders(table, "the dataset has label numbers without names")
        return list(range(len(table.names)))
    if is_numbered(table, classes):
        return numbered(table, classes, labels_are_sorted_names)
    places = named_places(table, classes)
    if labels_are_sorted_names:
        is_one_to_one = all(len(named) == 1 for named in places) and len(set[int]().union(*places)) == len(places)
        if is_one_to_one and (table.allows_some or len(places) == len(table.names)):
            return [place for (place,) in places]
    else:
        for order in published_orders(table):
            if len(order) == len(places) and all(place in named for place, named in zip(order, places, strict=True)):
                return order
    raise mismatch(table, classes, places)


def named_places(table: ClassTable, names: Sequence[str]) -> list[set[int]]:
    """Return the places in the table that each name may stand for, with or without a leading number."""
    owners = defaultdict[str, set[int]](set)
    for place, spellings in enumerate(table.spellings):
        for spelling in spellings:
            owners[letters(spelling)].add(place)
    return [owners.get(letters(name), set()) | owners.get(letters(without_number(name)), set()) for name in names]


def published_orders(table: ClassTable) -> list[list[int]]:
    """List the published label orders of a table, each as places in the table."""
    orders = [list(range(len(table.names)))]
    if table.other_order:
        orders.append([place for (place,) in named_places(table, table.other_order)])
    return orders


def is_numbered(table: ClassTable, classes: Sequence[str]) -> bool:
    """Tell whether the classes are the label numbers from 0 or from 1, and none of them is a name of the table."""
    if not all(map(str.isdecimal, classes)) or any(named_places(table, classes)):
        return False
    count = len(table.names)
    return sorted(map(int, classes)) in (list(range(count)), list(range(1, count + 1)))


def numbered(table: ClassTable, classes: Sequence[str], labels_are_sorted_names: bool) -> list[int]:
    """Return the labels that numbers name; refuse them if they could count in another published order."""
    refuse_two_orders(table, f"the dataset's classes are numbers ({shown(classes)})")
    numbers = [int(name) for name in classes]
    places = [number - min(numbers) for number in numbers]
    if not labels_are_sorted_names and places != sorted(places):
        raise UserError(
            f"classnames={table.name}: the dataset's classes are numbers in another order ({shown(classes)}): expected "
            f"{shown(sorted(classes, key=int))}"
        )
    return places


def refuse_two_orders(table: ClassTable, numbers: str) -> None:
    """Refuse label numbers of a table with two published orders, because nothing tells which one they count in."""
    if table.other_order:
        raise UserError(
            f"classnames={table.name}: {numbers}, and there are two published label orders "
            f"({shown([names[0] for names in table.names])}; {shown(table.other_order)}): name its classes"
        )


def mismatch(table: ClassTable, classes: Sequence[str], places: list[set[int]]) -> UserError:
    """Return the error that shows both sides of what is missing, unknown, repeated or at another place.

    Args:
        table: the published classes.
        classes: the source's names of its labels.
        places: per name of the source, the places in the table that it may stand for.
    """
    published = [names[0] for names in table.names]
    present = set[int]().union(*places)
    unknown = [name for name, named in zip(classes, places, strict=True) if not named]
    missing = [name for place, name in enumerate(published) if place not in present]
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
        moved = [label for label, named in enumerate(places) if label not in named]
        pairs = "; ".join(f"label {i} is {classes[i]}, published {published[i]}" for i in moved[:NUM_SHOWN])
        what = f"the dataset's classes are in another order than the published ones ({pairs}; {len(moved)} in all)"
    return UserError(
        f"classnames={table.name}: {what}: correct the dataset, or give names of your own with classnames=FILE"
    )


def shown(names: Sequence[str]) -> str:
    """Return the first names, and how many follow."""
    more = f", ... {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
