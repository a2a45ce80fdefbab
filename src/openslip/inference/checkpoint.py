"""Checkpoints: written whole or not at all, read without running anything that stands in them.

A run's checkpoint is Lightning's with one more entry, `openslip`: `format`, `architecture` (the model's config),
`tokenizer`, `transform` and `step`. A stripped file holds that entry and the weights of the model alone.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from openslip.durable import durable
from openslip.errors import UserError
from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.models.text_transformer import TextTransformer
from openslip.models.timm_tower import TimmTower
from openslip.run.checkpoints import newest_whole, saved

# What a file may name, because it holds numbers and settings alone: the published checkpoints keep their
# command line as an argparse.Namespace and their best accuracy as a numpy scalar, pickled by numpy 1.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_SAFE_GLOBALS: list[Callable | tuple[Callable, str]] = [
    argparse.Namespace,
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDG"},
]
_CLASSES = {
    f"{part.__module__}.{part.__name__}": part for part in (DualEncoder, ImageEncoder, TimmTower, TextTransformer)
}


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint's dict, on the CPU.

    Raises:
        UserError: no such file, no checkpoint, or one that names anything beyond tensors, numbers and settings.
    """
    path = checkpoint_file(path)
    if not path.exists():
        raise UserError(f"checkpoint {path}: no such file; give a run's folder (runs/NAME) or a checkpoint file")
    if path.suffix == ".safetensors":
        raise UserError(f"checkpoint {path} is a safetensors file, which holds no settings: give the checkpoint itself")
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file provokes, nothing of it was run
        raise UserError(f"checkpoint {path}: {_why_unreadable(path, str(error))}") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, not a checkpoint's dict")
    return content


def checkpoint_file(path: str | Path) -> Path:
    """The file itself, or the newest whole checkpoint of a run's folder."""
    path = Path(path)
    if not path.is_dir():
        return path
    folder = path / "checkpoints"
    return newest_whole(folder).path if saved(folder) else folder / "last.ckpt"


def _why_unreadable(path: Path, message: str) -> str:
    # The message names one, which is all there is for files before the zip format.
    named = set(re.findall(r"GLOBAL ([\w.]+) (?:whose|was)", message))
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            named |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # too damaged to list them
        named |= set()
    if named:
        return f"it names {', '.join(sorted(named))}, which could run code, so it is refused and nothing was run"
    size = path.stat().st_size
    return f"cannot be read as a checkpoint ({size:,} bytes; cut off, damaged, or another kind of file)"


def write(path: str | Path, content: dict[str, Any]) -> None:
    """Saves through a temporary file in the same folder, so that `path` is always a whole checkpoint.

    Raises:
        UserError: the folder cannot be written or is full; what stood at `path` is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {path} could not be written ({why_unwritten(error)}): free space or choose another folder"
        ) from error


def why_unwritten(error: OSError | RuntimeError) -> str:
    """The operating system's reason; torch raises an error of its own while it handles that one."""
    cause = error if isinstance(error, OSError) else error.__context__
    return str(cause.strerror) if isinstance(cause, OSError) else str(error).splitlines()[0]


def build_model(architecture: Any, allow: Collection[str] = ()) -> nn.Module:
    """The model that plain fields describe.

    Args:
        architecture: a model config as it stands in a run's config.yaml.
        allow: import paths of classes of your own that the description may name.

    Raises:
        UserError: it names any other `_target_` anywhere; nothing is imported or built then.
    """
    for target in targets(architecture):
        if target not in _CLASSES and target not in allow:
            raise UserError(
                f"the checkpoint's config names _target_ {target!r}, none of OpenSLIP's model classes: refused; "
                f"if it is yours, allow it by name (allow=[{target}])"
            )
    model = _build(architecture)
    if not isinstance(model, nn.Module):
        raise UserError("the checkpoint's config describes no model: expected a _target_ at its top")
    return model


def targets(description: Any) -> Iterator[str]:
    """Every `_target_` in a nest of dicts and lists."""
    if isinstance(description, dict):
        if "_target_" in description:
            yield str(description["_target_"])
        for value in description.values():
            yield from targets(value)
    elif isinstance(description, (list, tuple)):
        for value in description:
            yield from targets(value)


def _build(description: Any) -> Any:
    if not isinstance(description, dict):
        return description
    fields = {key: _build(value) for key, value in description.items() if key != "_target_"}
    if "_target_" not in description:
        return fields
    target = description["_target_"]
    part = _CLASSES.get(target) or _import(target)
    expected = inspect.signature(part).parameters
    required = {name for name, parameter in expected.items() if parameter.default is parameter.empty}
    if unknown := (fields.keys() - expected.keys()) | (required - fields.keys()):
        raise UserError(
            f"the checkpoint's {target} has other fields than this version expects: {', '.join(sorted(unknown))}"
        )
    try:
        return part(**fields)
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, ZeroDivisionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the checkpoint's {target} cannot be built: {reason}") from error


def _import(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(__import__(module, fromlist=[name]), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"allow={target}: cannot be imported ({error}); is its folder on PYTHONPATH?") from error
