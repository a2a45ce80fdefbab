"""Published checkpoints that have a name, read from `published.yaml`; a name is used like a path."""

import difflib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from openslip.errors import UserError, first_line

TABLE = Path(__file__).with_name("published.yaml")
MAX_NEAR_NAMES = 3


class Published(NamedTuple):
    """A published checkpoint; accuracies are top-1 on ImageNet-1k in per cent, None where none was published.

    Attributes:
        name: name that `openslip.load` takes.
        address: address of the file.
        source: repository that published it.
        licence: licence that the repository states.
        model: method and image tower.
        image_size: side of the input image in pixels.
        dataset: dataset of the training.
        epochs: epochs of the training.
        expected_bytes: estimate of the file's size.
        bytes: size of the file; None if its source does not state it.
        zero_shot: zero-shot accuracy.
        linear: accuracy of a linear classifier on the frozen image tower.
        finetuned: accuracy after fine-tuning.
    """

    name: str
    address: str
    source: str
    licence: str
    model: str
    image_size: int
    dataset: str
    epochs: int
    expected_bytes: int
    bytes: int | None = None
    zero_shot: float | None = None
    linear: float | None = None
    finetuned: float | None = None

    @property
    def file_name(self) -> str:
        """Name of the file at the address."""
        return self.address.rpartition("/")[2]

    def accuracies(self) -> tuple[float | None, float | None, float | None]:
        """Return the zero-shot, linear and fine-tuned accuracy."""
        return self.zero_shot, self.linear, self.finetuned

    def size(self) -> str:
        """Return the size of the file, such as `~2.0 GB`; a tilde marks an estimate."""
        return f"{self.bytes / 1e9:.1f} GB" if self.bytes else f"~{self.expected_bytes / 1e9:.1f} GB"


@cache
def published(table: Path) -> dict[str, Published]:
    """Read a table of published checkpoints, by name."""
    import yaml  # noqa: PLC0415  # only a list of the names needs it, not `--help`

    files = {}
    for group in yaml.safe_load(table.read_text(encoding="utf-8")):
        for name, fields in group["files"].items():
            files[name] = Published(
                name=name,
                address=group["address"].format(name=name),
                source=group["source"],
                licence=group["licence"],
                image_size=group["image_size"],
                expected_bytes=group["parameters"][fields["model"]] * group["bytes_per_parameter"],
                **fields,
            )
    return files


def find(path: str | Path) -> Published | None:
    """Return the published checkpoint of this name; None if a file or folder has the name, or if it is a path.

    Raises:
        UserError: there is no such file, and the name is similar to that of a published checkpoint, or the system
            refuses the path, for example because it is too long.
    """
    try:
        if Path(path).exists():
            return None
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {str(path)[:120]}: {first_line(error)[:120]}") from error
    known, name = published(TABLE), str(path)
    if "/" not in name and name not in known and (near := difflib.get_close_matches(name, known, MAX_NEAR_NAMES)):
        raise UserError(
            f"checkpoint {path}: no such file, and no published checkpoint has this name; similar names are "
            f"{', '.join(near)} (openslip models lists all)"
        )
    return known.get(name)
