"""Image features that evaluations share: in memory and, if asked, in files that later commands read.

A file of the cache (`inference/tensor_files.py`) holds `features`, float32 [images, width], and `labels`, int64
[images].
"""

import hashlib
import importlib.metadata
import json
from pathlib import Path

from torch import Tensor

from openslip import __version__
from openslip.distributed import is_main_process, of_all_ranks
from openslip.inference import tensor_files
from openslip.inference.bundle import Bundle
from openslip.inference.embedding_cache import is_known, kind
from openslip.inference.tensor_files import as_bytes
from openslip.inference.wrapped import WrappedModel

MOST_IN_MEMORY = 2  # sources whose features are kept in memory
MOST_BYTES = 10 * 2**30  # size of all files together; the least recently used files are removed

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
            tensors = tensor_files.read(path)
            if tensors is not None and tensors.keys() == {"features", "labels"}:
                self.keep(key, (tensors["features"], tensors["labels"]))
        return self.memory[key] if all(of_all_ranks(key in self.memory)) else None

    def put(self, bundle: Bundle, source: str, batch_size: int, entry: Entry) -> None:
        """Keep the features of a source; if their file cannot be written, a warning is printed."""
        key = self.key(bundle, source, batch_size)
        self.keep(key, entry)
        path = self.path(bundle, key)
        if path is not None and is_main_process():
            tensor_files.write(path, {"features": entry[0], "labels": entry[1]})
            tensor_files.remove_oldest(path.parent, most_bytes=MOST_BYTES)

    def keep(self, key: str, entry: Entry) -> None:
        self.memory[key] = entry[0].cpu(), entry[1].cpu()  # a GPU's memory is the model's
        while len(self.memory) > MOST_IN_MEMORY:
            del self.memory[next(iter(self.memory))]

    def path(self, bundle: Bundle, key: str) -> Path | None:
        return None if self.folder is None or not is_known(bundle) else self.folder / f"{key}.safetensors"

    def key(self, bundle: Bundle, source: str, batch_size: int) -> str:
        """Hash all that features depend on: weights, architecture, transform, device, source and batch size."""
        is_other = isinstance(bundle.model, WrappedModel)  # its transform has no settings: the object is compared
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
