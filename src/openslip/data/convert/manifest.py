"""OUT/manifest.json: what the shards were made of, and which of them are whole. Only the parent process writes it."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from openslip.data.convert.shard import Entry
from openslip.data.convert.totals import Totals
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
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def read(path: Path, made_of: dict[str, Any]) -> Manifest:
    """The manifest at `path`, which must have been made of the same; a new one if there is none or it has no shards.

    Raises:
        UserError: made of something else, or no manifest of ours.
    """
    if not path.exists():
        return Manifest(made_of)
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        manifest = Manifest(
            {key: content[key] for key in made_of},
            [Entry(**entry) for entry in content["shards"]],
            content["left_out_bytes"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no manifest of this version ({error!r}): convert into a new folder") from error
    if not manifest.shards:
        return Manifest(made_of)
    for key, value in made_of.items():
        if manifest.made_of[key] != value:
            raise UserError(
                f"{path.parent} holds shards with {key}={manifest.made_of[key]!r}, this command has {key}={value!r}: "
                "give the same command again to go on, or another folder"
            )
    return manifest
