"""Class embeddings that are computed once for each model, labels and templates: kept in memory and, if asked, on disk.

A file of the cache (`tensor_files.py`) holds the tensor `classes`, float32 [labels, embed].
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from openslip import __version__
from openslip.inference import tensor_files
from openslip.inference.bundle import Bundle
from openslip.inference.prompts import class_embeddings
from openslip.inference.tensor_files import as_bytes
from openslip.inference.wrapped import WrappedTokenizer
from openslip.models.dual_encoder import DualEncoder
from openslip.progress import progress

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
        tensors = None if path is None else tensor_files.read(path)
        if tensors is None:
            tensors = {"classes": class_embeddings(lambda texts: encode(bundle, texts), labels, templates)}
            if path is not None:
                tensor_files.write(path, tensors)
                tensor_files.remove_oldest(path.parent, most_files=MOST_FILES)
        known[key] = tensors["classes"].to(bundle.device)
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
        None if is_ours else bundle.origin,  # `architecture` may lack settings of another library's model
        kind(tokenizer),
        tokenizer.number if isinstance(tokenizer, WrappedTokenizer) else tokenizer.settings(),
        labels,
        templates,
    ]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode())
    for name, weight in bundle.model.state_dict().items():
        # In our own model class, weights with these prefixes do not change text features; in a user's class, any may.
        if not is_ours or not name.startswith(("image_", "logit_")):
            digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
            digest.update(as_bytes(weight))
    return digest.hexdigest()


def is_known(bundle: Bundle) -> bool:
    """Whether the classes of the model, its parts and the tokenizer belong to packages whose versions are known."""
    tokenizer = bundle.tokenizer
    if tokenizer is not None and (
        isinstance(tokenizer, WrappedTokenizer) or not kind(tokenizer).startswith("openslip.")
    ):
        return False
    return all(kind(part).startswith(PACKAGES) for part in bundle.model.modules())


def kind(part: object) -> str:
    """Return the import path of an object's class."""
    return f"{type(part).__module__}.{type(part).__qualname__}"
