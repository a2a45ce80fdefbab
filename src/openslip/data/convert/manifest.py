"""OUT/manifest.json: what the shards were made of, and which of them are whole. Only the parent process writes it."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from openslip.data.convert.shard import Entry
from openslip.data.convert.totals import Totals
from openslip.durable import write_text
from openslip.errors import UserError

FORMAT = 1


@dataclass
class Manifest:
    """Whole shards are always the first ones, in order.

    Attributes:
        made_of: layout, root and options; another value of any of them would give other bytes.
        shards: entries, in order.
        left_out_bytes: how much of left_out.jsonl belongs to them.
        is_complete: there is no further shard.
    """

    made_of: dict[str, Any]
    shards: list[Entry] = field(default_factory=list)
    left_out_bytes: int = 0
    is_complete: bool = False

    def save(self, path: Path) -> None:
        """Atomically."""
        totals = Totals.of(self.shards)
        content = {
            "format": FORMAT,
            **self.made_of,
            "is_complete": self.is_complete,
            "samples": totals.samples,
            "bytes": totals.bytes,
            "left_out": dict(sorted(totals.left_out.items())),
            "left_out_bytes": self.left_out_bytes,
            "shards": [asdict(entry) for entry in self.shards],
        }
        write_text(path, json.dumps(content, indent=1))

    def refuse_others(self, made_of: dict[str, Any], out: Path) -> None:
        for key, value in made_of.items():
            if self.made_of[key] != value:
                raise UserError(
                    f"{out} holds shards made with {key}={self.made_of[key]!r}, this command has {key}={value!r}: "
                    "give the same again to go on, or another folder"
                )


def read(path: Path, keys: Collection[str]) -> Manifest | None:
    """The manifest at `path`, None if there is no file; `keys` are those of `made_of`.

    Raises:
        UserError: no manifest of ours.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        made_of = {key: content[key] for key in keys}
        return Manifest(made_of, [Entry(**entry) for entry in content["shards"]], content["left_out_bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no manifest of this version ({error!r}): convert into a new folder") from error
