"""Models and datasets that the configs offer, read as text, so that listing them waits for no slow import."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from openslip.config.folder import names
from openslip.config.help import commented_lines

COUNT = re.compile(r";? ?([\d.]+) M parameters(?: in the image tower)?")
ENVIRONMENT = re.compile(r"\$\{oc\.env:(\w+),([^}]*)\}")


class Model(NamedTuple):
    """A model config; `parameters` has millions of them for each tower, and is empty if the configs state none."""

    name: str
    parameters: str
    meaning: str


class Dataset(NamedTuple):
    """A data config; `places` are the folders of its shards, empty if the user names the shards."""

    name: str
    places: tuple[str, ...]
    meaning: str

    def state(self) -> str:
        """Return whether the shards are on disk; patterns and addresses are not looked up."""
        if not self.places:
            return "you name it"
        if any(set("*?[{") & set(place) or "://" in place for place in self.places):
            return "not checked"
        counts = [number_of_shards(Path(place)) for place in self.places]
        return f"{sum(counts)} shards" if all(counts) else "absent"


def number_of_shards(folder: Path) -> int:
    """Count the tar files of a folder or, if it has none, of the folders in it, as the built-in dataset has them."""
    return len([*folder.glob("*.tar")] or [*folder.glob("*/*.tar")])


def models(folders: Sequence[Path]) -> list[Model]:
    """List the models that `model=` takes, each described by the first lines of its config files."""
    return [described(name, folders) for name in names("model", folders)]


def described(name: str, folders: Sequence[Path]) -> Model:
    """Describe a model by its file, or by those of its method and size; a method's title ends at its first `: `."""
    if file := config_file(f"model/{name}", folders):
        counts, titles = COUNT.findall(header(file)), [header(file)]
    else:
        method, size = name.rsplit("_", 1)
        files = [config_file(group, folders) for group in (f"method/{method}", f"size/{size}", f"size/text/{size}")]
        of_method, of_size, of_text = (header(file) if file else "" for file in files)
        has_text = files[0] is not None and "/size/text@_global_: null" not in files[0].read_text("utf-8")
        counts = [count for text in (of_size, of_text if has_text else "") for count in COUNT.findall(text)]
        titles = [of_method.partition(": ")[0], COUNT.sub("", of_size)]
    return Model(name, " + ".join(f"{count} M" for count in counts), ": ".join(filter(None, titles)))


def datasets(folders: Sequence[Path]) -> list[Dataset]:
    """List the datasets that `data=` takes."""
    found = []
    for name in names("data", folders):
        if file := config_file(f"data/{name}", folders):
            source = re.search(r"^ +- (?:override )?source: (\S+)", file.read_text("utf-8"), re.MULTILINE)
            found.append(Dataset(name, tuple(places(source[1], folders)) if source else (), header(file)))
    return found


def places(source: str, folders: Sequence[Path]) -> Iterator[str]:
    """Yield the folders that a config of `data/source/` names, and those of the sources that it combines."""
    if (file := config_file(f"data/source/{source}", folders)) is None:
        return
    for part in re.findall(r"^ +- (\w+)@sources", file.read_text("utf-8"), re.MULTILINE):
        yield from places(part, folders)
    for key, value, _ in commented_lines(file):
        if key in ("shards", "root") and value not in ("???", ""):
            yield ENVIRONMENT.sub(lambda match: os.environ.get(match[1], match[2]), value)


def config_file(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the config file of this name in the first folder that has it, as Hydra does."""
    files = (folder / f"{name}.yaml" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def fetched_licences(folders: Sequence[Path]) -> dict[str, str]:
    """Return the licence of each entry that `openslip data get` fetches, without the slow import of a YAML parser."""
    licences = {}
    for name in names("catalogue", folders):
        file = config_file(f"catalogue/{name}", folders)
        lines = file.read_text("utf-8").splitlines() if file else []
        if "fetcher:" in lines:
            (licence,) = (line.partition(": ")[2] for line in lines if line.startswith("licence:"))
            licences[name] = licence.strip('"')
    return licences


def header(file: Path) -> str:
    """Return the comment at the top of a config file, without Hydra's line `@package`."""
    lines = []
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# "))
    return " ".join(lines)
