"""How datasets are obtained: one file `catalogue/NAME.yaml` per dataset, read without Hydra."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from openslip.config.catalogue import config_file, header
from openslip.config.folder import names
from openslip.errors import UserError


class Obtainable(NamedTuple):
    """A dataset, or weights, of the catalogue.

    Attributes:
        name: name that `openslip data get` takes.
        meaning: what it is, and its source.
        content: number of images and classes.
        licence: its licence, as the owner states it.
        size: size of the owner's download.
        page: the owner's page.
        evaluation: name of the config that evaluates it; None if there is none.
        layouts: other layouts that are read, as paths below EVALUATION_DATA.
        folder: name of the folder that the fetcher makes, below EVALUATION_DATA; None without a fetcher.
        fetcher: config of a `Fetcher`; None if it has to be downloaded by hand.
    """

    name: str
    meaning: str
    content: str
    licence: str
    size: str
    page: str
    evaluation: str | None
    layouts: list[str]
    folder: str | None
    fetcher: dict[str, Any] | None

    def state(self, root: Path) -> str:
        """Return whether the fetcher's folder is below `root`, or else how the dataset is obtained."""
        if self.folder is None:
            return "by hand"
        folder = root / self.folder
        return "present" if folder.is_dir() and any(folder.iterdir()) else "fetchable"


def data_folder() -> Path:
    """Return the folder of evaluation data, which the variable EVALUATION_DATA names."""
    return Path(os.environ.get("EVALUATION_DATA", "data/evaluation"))


def obtainable(folders: Sequence[Path]) -> list[Obtainable]:
    """Read the whole catalogue, sorted by name."""
    return [read(name, folders) for name in names("catalogue", folders)]


def find(name: str, folders: Sequence[Path]) -> Obtainable:
    """Read one entry of the catalogue.

    Raises:
        UserError: the catalogue has no such entry.
    """
    known = names("catalogue", folders)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "openslip data get lists all"
        raise UserError(f"{name} is not in the catalogue; {hint}")
    return read(name, folders)


def read(name: str, folders: Sequence[Path]) -> Obtainable:
    file = config_file(f"catalogue/{name}", folders)
    assert file is not None
    fields = yaml.safe_load(file.read_text("utf-8"))
    expected = set(Obtainable._fields) - {"name", "meaning"}
    if not isinstance(fields, dict) or fields.keys() != expected:
        given = sorted(map(str, fields)) if isinstance(fields, dict) else fields
        raise UserError(f"{file}: has the keys {given}, expected {sorted(expected)}")
    return Obtainable(name=name, meaning=header(file), **fields)
