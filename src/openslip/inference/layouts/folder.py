"""Files of a model's folder: a name or a link that leads out of the folder is refused."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from openslip.errors import UserError
from openslip.inference.files import distinct, read, refuse_changed
from openslip.regular_file import regular_file


def file_in(folder: Path, name: str) -> Path | None:
    """Return a file of a folder, or None if the folder does not have it.

    In the cache of huggingface_hub, a folder `snapshots/HASH` may link to files of the model's folder `blobs`.

    Raises:
        UserError: the name is not that of a file directly in the folder, or the file is a link to another folder, a
            pipe or a device.
    """
    path = folder / name
    if not name or Path(name).name != name:
        raise UserError(f"{folder} names the file {name[:120]!r}: expected a file in this folder")
    if not path.is_file() and not path.is_symlink():
        return None
    home = folder.resolve()
    allowed = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if path.resolve().parent not in allowed:
        raise UserError(f"{path} is a link out of its folder, to {path.resolve()}: copy the file into the folder")
    if not path.is_file():
        raise UserError(f"{path} is a link to a missing file: download the model again")
    return regular_file(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a dict.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def peek_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of a folder, or return an empty dict if there is none that can be read."""
    try:
        path = file_in(folder, name) if folder.is_dir() else None
        return {} if path is None else read_json(path)
    except (OSError, UserError, ValueError):
        return {}


def weights_in(folder: Path, names: tuple[str, ...]) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights of a folder from the first of these files that it has, or from the shards of their index.

    Args:
        folder: the folder.
        names: names of files, the preferred one first; the index of `NAME` is `NAME.index.json`.

    Returns:
        The file or index, for errors, and the weights by name.

    Raises:
        UserError: the folder has none of the files, or one of them cannot be read.
    """
    for name in names:
        if (path := file_in(folder, name)) is not None:
            return path, tensors(path)
        if (index := file_in(folder, f"{name}.index.json")) is not None:
            return index, sharded(folder, index)
    raise UserError(f"{folder} has no weights: expected {' or '.join(names)}")


def sharded(folder: Path, index: Path) -> dict[str, Tensor]:
    """Read the weights of all shards that an index names.

    Raises:
        UserError: a shard is missing, two shards have a weight with the same name, or the index names other weights.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise UserError(f"{index}: its weight_map is no dict of file names")
    named: list[tuple[str, Tensor]] = []
    for shard in sorted(set(places.values())):
        if (path := file_in(folder, shard)) is None:
            raise UserError(f"{index} names the file {shard}, which is missing: download the model again")
        named += tensors(path).items()
    weights = distinct(named)
    if differing := weights.keys() ^ places.keys():
        raise UserError(f"{index} and its shards differ in {len(differing)} weights, such as {min(differing)[:120]}")
    return weights


def tensors(path: Path) -> dict[str, Tensor]:
    """Read the weights of a file by name: a safetensors file, or a `torch.save` of a state dict."""
    refuse_changed(path)
    content = read(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path}: its state_dict is a {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"checkpoint {path}: expected names and tensors, got {str(name)[:120]}, a {type(value).__name__}"
            )
    return state
