"""Class embeddings that are computed once for each model, labels and templates: kept in memory and, if asked, on disk.

A file of the cache is `KEY.safetensors`, and KEY is the hash of all that the embeddings depend on. It holds the tensors
`classes` (float32 [labels, embed]) and `sha256` (uint8 [32], the checksum of `classes`). A file that is damaged in any
way is ignored and written again.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load, save
from torch import Tensor

from openslip import __version__
from openslip.durable import durable, optional
from openslip.inference.bundle import Bundle
from openslip.inference.prompts import class_embeddings
from openslip.inference.wrapped import WrappedTokenizer
from openslip.models.dual_encoder import DualEncoder
from openslip.progress import progress
from openslip.regular_file import regular_file

PROMPTS_AT_ONCE = 1024  # prompts per progress update
MOST_IN_MEMORY = 16  # per model
MOST_FILES = 200
PACKAGES = ("openslip.", "timm.", "torch.")  # only models whose modules are all from these are cached on disk

_memory: WeakKeyDictionary[Any, dict[str, Tensor]] = WeakKeyDictionary()


def cached_embeddings(
    bundle: Bundle, labels: Sequence[str], templates: Sequence[str], folder: Path | None = None
) -> Float[Tensor, "labels embed"]:
    """Return the labels' class embeddings on the bundle's device, from the cache if they are in it.

    Args:
        bundle: model and tokenizer.
        labels: candidate labels.
        templates: prompts with `{}` for the label.
        folder: folder of the files; None keeps the embeddings in memory only. If code of yours or of another library is
            part of the model or tokenizer, the folder is not used, because this code may change.
    """
    key = fingerprint(bundle, labels, templates)
    known = _memory.setdefault(bundle.model, {})
    if key not in known:
        path = None if folder is None or not is_known(bundle) else folder / f"{key}.safetensors"
        classes = None if path is None else read(path, len(labels))
        if classes is None:
            classes = class_embeddings(lambda texts: encode(bundle, texts), labels, templates)
            if path is not None:
                write(path, classes)
        known[key] = classes.to(bundle.device)
        while len(known) > MOST_IN_MEMORY:
            del known[next(iter(known))]
    return known[key]


def encode(bundle: Bundle, texts: Sequence[str]) -> Float[Tensor, "texts embed"]:
    """Encode texts, and show how many are done: ImageNet's 1000 names in 80 templates take minutes on a CPU."""
    features = []
    with progress("prompts", total=len(texts)) as advance:
        for start in range(0, len(texts), PROMPTS_AT_ONCE):
            batch = texts[start : start + PROMPTS_AT_ONCE]
            features.append(bundle.encode_text(batch))
            advance(len(batch))
    return torch.cat(features)


def fingerprint(bundle: Bundle, labels: Sequence[str], templates: Sequence[str]) -> str:
    """Hash all that class embeddings depend on: text weights, architecture, tokenizer, device, labels and templates."""
    tokenizer = bundle.need_tokenizer()
    is_ours = type(bundle.model) is DualEncoder
    settings = [
        __version__,
        bundle.device.type,
        kind(bundle.model),
        bundle.architecture,
        None if is_ours else bundle.origin,  # the architecture of another library's model may not say all
        kind(tokenizer),
        tokenizer.number if isinstance(tokenizer, WrappedTokenizer) else tokenizer.settings(),
        labels,
        templates,
    ]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode())
    for name, weight in bundle.model.state_dict().items():
        # In our own model class, these do not change text features; in a class of the user's, anything may.
        if not is_ours or not name.startswith(("image_", "logit_")):
            digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
            digest.update(as_bytes(weight))
    return digest.hexdigest()


def is_known(bundle: Bundle) -> bool:
    """Whether the code of the model, of all its parts and of the tokenizer is that of known versions of packages."""
    tokenizer = bundle.tokenizer
    if tokenizer is not None and (
        isinstance(tokenizer, WrappedTokenizer) or not kind(tokenizer).startswith("openslip.")
    ):
        return False
    return all(kind(part).startswith(PACKAGES) for part in bundle.model.modules())


def kind(part: object) -> str:
    """Return the import path of an object's class."""
    return f"{type(part).__module__}.{type(part).__qualname__}"


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, copied only if it is not contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def checksum(classes: Float[Tensor, "labels embed"]) -> UInt8[Tensor, " 32"]:
    return torch.tensor(list(hashlib.sha256(as_bytes(classes)).digest()), dtype=torch.uint8)


def read(path: Path, num_labels: int) -> Float[Tensor, "labels embed"] | None:
    """Read a file of the cache; return None if it is missing or damaged."""
    try:
        stored = load(regular_file(path).read_bytes())
        classes = stored["classes"]
        if classes.dtype == torch.float32 and classes.ndim == 2 and len(classes) == num_labels:
            path.touch()  # the files that were used last are kept
            return classes if torch.equal(stored["sha256"], checksum(classes)) else None
    except Exception:  # a damaged file can raise anything; it is replaced
        return None
    return None


def write(path: Path, classes: Float[Tensor, "labels embed"]) -> None:
    """Write a file of the cache whole or not at all; if that fails, print a warning."""
    classes = classes.cpu().contiguous()
    with optional(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable(path) as file:
            file.write(save({"classes": classes, "sha256": checksum(classes)}))
        remove_oldest(path.parent)


def remove_oldest(folder: Path) -> None:
    """Remove the files that were not used for the longest time, all but `MOST_FILES`."""
    times = {}
    for path in folder.glob("*.safetensors"):
        with suppress(FileNotFoundError):  # another process may have removed it
            times[path] = os.stat(path).st_mtime
    for path in sorted(times, key=lambda path: times[path])[:-MOST_FILES]:
        path.unlink(missing_ok=True)
