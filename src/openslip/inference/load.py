"""Load a model with all that belongs to it from any file or folder of a known format."""

import importlib
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

import torch

from openslip.errors import UserError
from openslip.inference import formats
from openslip.inference.bundle import Bundle
from openslip.inference.files import checkpoint_file, peek, read


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    allow: Collection[str] = (),
    format: str | None = None,  # noqa: A002
) -> Bundle:
    """A model from a run's folder, a checkpoint, a stripped file, or a file in a foreign format.

    Nothing in the file is executed.

    Args:
        path: of the folder or file.
        device: `cpu`, `cuda`, ...; `auto` is the GPU where there is one.
        allow: import paths of model and tokenizer classes of your own that the checkpoint may name.
        format: name of a file in `openslip.inference.formats`, or import path of a module of your own with `read`;
            None: found by the file's content.

    Raises:
        UserError: unreadable or hostile file, no known format, a class that is not allowed, weights that do not fit.
    """
    place = choose_device(device)
    file = checkpoint_file(path)
    try:
        bundle = find_format(file, format).read(file, allow=allow)
    except UserError as error:
        if str(file) in str(error):
            raise
        raise UserError(f"checkpoint {file}: {error}") from error
    except RecursionError as error:
        raise UserError(f"checkpoint {file}: an entry of it is nested too deeply") from error
    finally:
        peek.cache_clear()
    bundle.model.float().eval().to(place)
    return Bundle(bundle.model, bundle.tokenizer, bundle.transform, bundle.architecture, place, str(path))


def find_format(file: Path, name: str | None) -> ModuleType:
    """The module that reads this file: the named one, else the first that knows its content."""
    known = formats.names()
    if name is not None:
        target = f"openslip.inference.formats.{name}" if name in known else name
        try:
            return importlib.import_module(target)
        except ImportError as error:
            raise UserError(
                f"format={name}: cannot be imported ({error}); expected {', '.join(known)}, or a module of your own"
            ) from error
    for module in map(formats.load, known):
        if module.detect(file):
            return module
    keys = ", ".join(str(key) for key in list(read(file))[:5])  # a file that cannot be read says why here
    raise UserError(f"checkpoint {file} is in none of the known formats ({', '.join(known)}); its keys: {keys}")


def choose_device(device: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    Raises:
        UserError: this machine has no such device.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={device} is not available on this machine ({reason}); use device=cpu") from error
