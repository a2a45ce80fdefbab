"""Expand brace patterns, folders, globs and addresses to the list of shards that they name."""

import os
from glob import escape, glob, has_magic
from pathlib import Path

from braceexpand import braceexpand

from openslip.data.index.index import Shard
from openslip.data.listing import is_hidden, visible_files
from openslip.data.remote.address import SCHEMES, is_remote, shown
from openslip.errors import UserError

COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def expand(shards: str | list[str]) -> list[Shard]:
    """List all shards in the order given, and by name within a folder or glob.

    A `pipe:` command, which webdataset would run, is refused.
    """
    expanded = []
    for pattern in [shards] if isinstance(shards, str) else shards:
        if pattern.strip().startswith("pipe:"):
            raise UserError("shards 'pipe:...': pipe: would run a command and is refused; give paths of tar files")
        if "://" in pattern and not is_remote(pattern):
            kinds = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise UserError(f"shards {shown(pattern)}: expected paths, or addresses that begin with {kinds}")
        try:
            words = with_braces_expanded(pattern)
        except ValueError as error:
            raise UserError(
                f"shards {shown(pattern)}: its braces do not match, as in train-{{000..099}}.tar"
            ) from error
        for word in words:
            if is_remote(word):
                expanded.append(Shard(shown(word), None, word, ""))
                continue
            path = local_path(word)
            if path.is_dir():
                paths = [file for file in visible_files(path) if file.suffix.lower() == ".tar"]
            elif has_magic(word) and not path.exists():
                names = f"{escape(str(path.parent))}/{path.name}" if path.parent.is_dir() else str(path)
                matches = [Path(name) for name in sorted(glob(names))]
                paths = [match for match in matches if not any(map(is_hidden, {*match.parts} - {*path.parts}))]
            else:
                paths = [path]
            if not paths:
                raise UserError(f"shards {word}: no .tar file there; check data.source.shards")
            expanded += [Shard(str(path), path, "", "") for path in paths]
    if not expanded:
        raise UserError("shards: an empty list; give data.source.shards a brace pattern, a folder, or a list of them")
    return expanded


def without_repeats(shards: list[Shard]) -> tuple[list[Shard], list[str]]:
    """Keep the first of several names of one shard; returns the shards, and the repeated names.

    Links and relative paths are resolved.
    """
    unique: dict[str, Shard] = {}
    repeated = [shard.name for shard in shards if unique.setdefault(place_of(shard), shard) is not shard]
    return [*unique.values()], repeated


def place_of(shard: Shard) -> str:
    """Identify the file of a shard, the same for all links and hard links to it; for a remote shard, its address."""
    if shard.path is None:
        return shard.address
    try:
        status = os.stat(shard.path)
    except OSError:  # the file is missing: the error is raised when it is opened
        return os.path.realpath(shard.path)
    return f"{status.st_dev}:{status.st_ino}"


def passed_over(shards: str | list[str]) -> list[str]:
    """List shards that are not read although their folder is named: compressed ones, and those one folder deeper."""
    names = []
    for pattern in [shards] if isinstance(shards, str) else shards:
        folder = local_path(pattern)
        if not is_remote(pattern) and folder.is_dir():
            deeper = [path for path in folder.glob("*/*.tar") if not is_hidden(path.parent.name)]
            compressed = [path for path in visible_files(folder) if path.name.lower().endswith(COMPRESSED)]
            names += [str(path) for path in sorted(deeper) + compressed if not is_hidden(path.name)]
    return names


def with_braces_expanded(pattern: str) -> list[str]:
    """Expand the braces of a pattern, except those in the name of an existing file or folder."""
    folder, slash, name = pattern.rpartition("/")
    if Path(pattern).exists():
        return [pattern]
    if slash and Path(folder).is_dir():
        return [f"{folder}/{word}" for word in braceexpand(name)]
    return list(braceexpand(pattern))


def local_path(word: str) -> Path:
    """Path as it is written if it exists, else with a leading ~ replaced by the user's home directory."""
    path = Path(word)
    try:
        return path if path.exists() else path.expanduser()
    except RuntimeError:  # the user does not exist or has no home directory
        return path
