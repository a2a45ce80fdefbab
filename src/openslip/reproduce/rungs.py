"""The ladder is the list that `openslip reproduce` prints: runs to reproduce, in groups that are called rungs.

Each rung is a file `configs/reproduce/NAME.yaml`, read without Hydra.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from openslip.config.catalogue import header
from openslip.config.folder import config_folder, names
from openslip.errors import UserError
from openslip.inference.published import TABLE, published

GROUP = "reproduce"  # folder of the rungs' files in configs/


class Figure(NamedTuple):
    """A result of a run, in per cent.

    Attributes:
        what: what it measures.
        images: number of test images, which bounds how exactly an accuracy can be known.
        chance: its value if the model guesses, in per cent; None if it is not known.
    """

    what: str
    images: int
    chance: float | None = None

    def standard_error(self, value: float) -> float:
        """Return the standard error of an accuracy of this value, in points."""
        return (max(0.0, value * (100 - value)) / self.images) ** 0.5

    def described(self) -> str:
        """Say what the result measures, and its value by chance."""
        return self.what + ("" if self.chance is None else f" (chance {self.chance:g})")


class Entry(NamedTuple):
    """A run of the ladder.

    Attributes:
        name: name that `openslip reproduce` takes.
        settings: settings of `openslip train`; `experiment=NAME` if the file gives none.
        figures: results by their column in `metrics.csv`; the first one stands for the run.
        best: whether the figures are those of the best evaluation, not of the last.
        published: name of the published checkpoint that the run reproduces; None without one.
        accuracy: which of its accuracies the first figure is: `zero_shot`, `linear` or `finetuned`.
        hours: estimated hours of training on the rung's machine; None if nobody has estimated them.
        after: commands after the training that the figures need.
    """

    name: str
    settings: tuple[str, ...]
    figures: dict[str, Figure]
    best: bool = False
    published: str | None = None
    accuracy: str = "zero_shot"
    hours: float | None = None
    after: tuple[str, ...] = ()

    def published_figure(self) -> float | None:
        """Return the published value of the first figure, in per cent."""
        return None if self.published is None else getattr(published(TABLE)[self.published], self.accuracy)


class Rung(NamedTuple):
    """A rung: runs on the same data and machine.

    Attributes:
        name: name of the file.
        letter: place in the ladder.
        meaning: the comment at the top of the file.
        needs: data, and how it is obtained.
        machine: machine on which `hours` hold.
        entries: the runs, by name.
    """

    name: str
    letter: str
    meaning: str
    needs: str
    machine: str
    entries: dict[str, Entry]


def ladder(folder: Path | None = None) -> list[Rung]:
    """Read all rungs, the lowest first.

    Args:
        folder: folder of configs; None for that of this package.
    """
    folder = folder or config_folder()
    return sorted((read(folder / GROUP / f"{name}.yaml") for name in names(GROUP, [folder])), key=lambda r: r.letter)


def read(file: Path) -> Rung:
    """Read one rung.

    Raises:
        UserError: the file has other keys than a rung has.
    """
    fields = yaml.safe_load(file.read_text("utf-8"))
    check_keys(file, fields, expected={"letter", "needs", "machine", "runs"}, optional=set())
    entries = {}
    for name, values in fields["runs"].items():
        check_keys(f"{file}, {name}", values, expected={"figures"}, optional=set(Entry._fields) - {"name", "figures"})
        settings = tuple(values.pop("settings", [f"experiment={name}"]))
        figures = {column: Figure(**figure) for column, figure in values.pop("figures").items()}
        after = tuple(values.pop("after", ()))
        entries[name] = Entry(name=name, settings=settings, figures=figures, after=after, **values)
    texts = {key: str(fields[key]) for key in ("letter", "needs", "machine")}
    return Rung(name=file.stem, meaning=header(file), entries=entries, **texts)


def check_keys(place: Path | str, fields: Any, *, expected: set[str], optional: set[str]) -> None:
    """Refuse a mapping without the expected keys, or with others."""
    keys = set(fields) if isinstance(fields, Mapping) else set()
    if expected - keys or keys - expected - optional:
        raise UserError(
            f"{place}: has the keys {sorted(keys)}, expected {sorted(expected)} and any of {sorted(optional)}"
        )


def find(name: str, rungs: list[Rung]) -> tuple[Rung, Entry | None]:
    """Return the run of this name with its rung, or the rung of this name or letter.

    Raises:
        UserError: there is neither.
    """
    for rung in rungs:
        if entry := rung.entries.get(name):
            return rung, entry
    for rung in rungs:
        if name in (rung.name, rung.letter):
            return rung, None
    known = [*(rung.name for rung in rungs), *(entry for rung in rungs for entry in rung.entries), "published"]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(rung.name for rung in rungs)}, or a run of one"
    raise UserError(f"{name} is neither a run nor a rung; {hint} (`openslip reproduce` lists all)")
