"""Image features that evaluations share: in memory and, if asked, in files that later commands read.

A file of the cache is `KEY.safetensors`, and KEY is the hash of all that the features depend on. It holds `features`
(float32 [images, width]), `labels` (int64 [images]) and `sha256` (uint8 [32], the checksum of both). A file that is
damaged in any way is ignored and written again.
"""

import hashlib
import importlib.metadata
import json
import os
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import UInt8
from safetensors.torch import load, save
from torch import Tensor

from openslip import __version__
from openslip.distributed import is_main_process, of_all_ranks
from openslip.durable import durable, optional
from openslip.inference.bundle import Bundle
from openslip.inference.embedding_cache import as_bytes, is_known, kind
from openslip.inference.wrapped import WrappedModel
from openslip.regular_file import regular_file

MOST_IN_MEMORY = 2  # sources whose features are kept in memory
MOST_BYTES = 10 * 2**30  # of all files together; the ones that were not used for the longest time are removed

# Packages that compute features or decode images.
VERSIONS = {name: importlib.metadata.version(name) for name in ("torch", "timm", "pillow", "simplejpeg")}

Entry = tuple[Tensor, Tensor]  # features and labels


class FeatureCache:
    """Features and labels by the key of what they depend on; all ranks must make the same calls.

    Args:
        folder: folder of the files; None keeps features in memory only, as does a model with code of yours or of
            another library, because this code may change.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.memory: dict[str, Entry] = {}
        self.hashed: tuple[object, str] = (None, "")  # the model whose weights were hashed last, and their hash

    def get(self, bundle: Bundle, source: str, batch_size: int) -> Entry | None:
        """Return the features of a source (named by its fingerprint) if every rank knows them, else None."""
        key = self.key(bundle, source, batch_size)
        if key not in self.memory and (path := self.path(bundle, key)) is not None:
            entry = read(path)
            if entry is not None:
                self.keep(key, entry)
        return self.memory[key] if all(of_all_ranks(key in self.memory)) else None

    def put(self, bundle: Bundle, source: str, batch_size: int, entry: Entry) -> None:
        """Keep the features of a source; if their file cannot be written, a warning is printed."""
        key = self.key(bundle, source, batch_size)
        self.keep(key, entry)
        path = self.path(bundle, key)
        if path is not None and is_main_process():
            write(path, entry)

    def keep(self, key: str, entry: Entry) -> None:
        self.memory[key] = entry
        while len(self.memory) > MOST_IN_MEMORY:
            del self.memory[next(iter(self.memory))]

    def path(self, bundle: Bundle, key: str) -> Path | None:
        return None if self.folder is None or not is_known(bundle) else self.folder / f"{key}.safetensors"

    def key(self, bundle: Bundle, source: str, batch_size: int) -> str:
        """Hash all that features depend on: weights, architecture, transform, device, source and batch size."""
        is_other = isinstance(bundle.model, WrappedModel)  # whose transform has no settings: the object itself counts
        settings = [
            __version__,
            VERSIONS,
            bundle.device.type,
            kind(bundle.model),
            bundle.architecture,
            id(bundle.transform) if is_other else bundle.transform.settings(),
            self.weights(bundle),
            source,
            batch_size,
        ]
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode()).hexdigest()

    def weights(self, bundle: Bundle) -> str:
        """Hash the model's weights, once for each model."""
        if self.hashed[0] is not bundle.model:
            digest = hashlib.sha256()
            for name, weight in bundle.model.state_dict().items():
                digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
                digest.update(as_bytes(weight))
            self.hashed = (bundle.model, digest.hexdigest())
        return self.hashed[1]


def checksum(entry: Entry) -> UInt8[Tensor, " 32"]:
    digest = hashlib.sha256()
    for tensor in entry:
        digest.update(as_bytes(tensor))
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def read(path: Path) -> Entry | None:
    """Read a file of the cache; return None if it is missing or damaged."""
    try:
        stored = load(regular_file(path).read_bytes())
        entry = stored["features"], stored["labels"]
        if torch.equal(stored["sha256"], checksum(entry)) and len(entry[0]) == len(entry[1]):
            path.touch()  # the files that were used last are kept
            return entry
    except Exception:  # a damaged file can raise anything; it is replaced
        return None
    return None


def write(path: Path, entry: Entry) -> None:
    """Write a file of the cache whole or not at all; if that fails, print a warning."""
    features, labels = (tensor.detach().cpu().contiguous() for tensor in entry)
    with optional(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable(path) as file:
            file.write(save({"features": features, "labels": labels, "sha256": checksum((features, labels))}))
        remove_oldest(path.parent)


def remove_oldest(folder: Path) -> None:
    """Remove the files that were not used for the longest time, until all together are small enough."""
    found: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.safetensors"):
        with suppress(FileNotFoundError):  # another process may have removed it
            status = os.stat(path)
            found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found)[:-1]:
        if total <= MOST_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= size
