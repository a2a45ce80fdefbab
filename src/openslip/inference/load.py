"""Load a model with its tokenizer and transform from a file or folder in any known format."""

import importlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from openslip.distributed import notice_once
from openslip.errors import UserError
from openslip.inference import formats, libraries
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices
from openslip.inference.files import checkpoint_file, peek, read
from openslip.inference.formats.openslip import file_of
from openslip.inference.layouts.folder import peek_json
from openslip.inference.published import find
from openslip.text.bare_ids import BareIds

TRANSFORMERS = ("text_model.", "vision_model.")  # beginnings of the names of weights in transformers


def load(
    path: str | Path,
    *,
    device: str = "cpu",
    allow: Collection[str] = (),
    format: str | None = None,  # noqa: A002
    activation: str | None = None,
    image_heads: int | None = None,
    text_heads: int | None = None,
) -> Bundle:
    """Load a model from a run's folder, a checkpoint, a stripped file, or a file of another CLIP project.

    docs/WEIGHTS.md lists the formats. No code in the file is executed. If neither the file nor its project determines
    the activation or the numbers of heads, an error asks for them. Missing image settings get the defaults of that
    project, and a line says so. `open_clip:MODEL/PRETRAINED` and `hf:ORG/NAME` load and run a model with that library
    itself, so features are exactly the library's.

    Args:
        path: the folder or file to load, the name of a published checkpoint (`openslip models` lists them; it is
            downloaded once), or the address of a model in another library. A file or folder of that name takes
            precedence.
        device: device of the model, such as `cpu` or `cuda`; `auto` is the GPU if there is one, else the CPU.
        allow: import paths of your own model and tokenizer classes that the checkpoint may name.
        format: name of a file in `openslip.inference.formats`, or import path of your own module with a function
            `read`; None detects the format from the content.
        activation: activation of the MLPs, for a file that does not say it: `quickgelu`, `gelu` or `gelu_tanh`.
        image_heads: attention heads of the image tower, for a file that does not say them.
        text_heads: attention heads of the text tower, for a file that does not say them.

    Raises:
        UserError: the file is unreadable or hostile, its format is unknown, it names a class that is not allowed,
            its weights do not fit the model, a choice is needed, the file says something else than a choice, or a
            published checkpoint cannot be downloaded.
    """
    choices = Choices(allow=allow, activation=activation, image_heads=image_heads, text_heads=text_heads)
    place = choose_device(device)
    if library := libraries.find(path):
        module, address = library
        bundle = module.read(address, choices)
        bundle.model.float().eval().to(place)
        return replace(bundle, device=place, origin=str(path))
    file = checkpoint_file(local_file(path))
    try:
        bundle = find_format(file, format).read(file, choices)
    except UserError as error:
        if str(file) in str(error):
            raise
        raise UserError(f"checkpoint {file}: {error}") from error
    except RecursionError as error:
        raise UserError(f"checkpoint {file}: one of its entries is nested too deeply") from error
    finally:
        peek.cache_clear()
    if isinstance(bundle.tokenizer, BareIds):
        notice_once(f"{path}: {bundle.tokenizer.why()}")
    bundle.model.float().eval().to(place)
    return replace(bundle, device=place, origin=str(path), file=file)


def local_file(path: str | Path) -> str | Path:
    """Return the local copy of a published checkpoint if the path is its name, else the path unchanged.

    Raises:
        UserError: the path does not exist and resembles a published name, or the download fails.
    """
    published = find(path)
    if published is None:
        return path
    from openslip.inference.downloaded import local_copy

    return local_copy(published)


def find_format(file: Path, name: str | None) -> ModuleType:
    """Return the module that reads a file: the named format, else the first that detects its content.

    Raises:
        UserError: the named format cannot be imported or is not that of the file, or the file has no known format.
    """
    known = formats.names()
    if name is not None:
        target = f"openslip.inference.formats.{name}" if name in known else name
        try:
            module = importlib.import_module(target)
        except ImportError as error:
            raise UserError(
                f"format={name}: cannot be imported ({error}); expected {', '.join(known)}, or a module of your own"
            ) from error
        if name in known and not module.detect(file):
            if file.is_file():
                read(file)  # raises the reason if the file is unreadable
            raise UserError(f"checkpoint {file} is not in the format {name}; without format= it is detected")
        return module
    for module in map(formats.load, known):
        if module.detect(file):
            return module
    if kind := peek_json(file, "config.json").get("model_type"):
        raise UserError(f"{file} holds a model of transformers of type {str(kind)[:80]}: load it with hf:{file}")
    content = read(file_of(file))  # raises the reason if the file, or that of an exported folder, is unreadable
    weights = content.get("state_dict")
    kind, names = ("weights", weights) if isinstance(weights, dict) else ("keys", content)
    if any(str(name).startswith(TRANSFORMERS) for name in names):
        raise UserError(
            f"checkpoint {file} holds the weights of a model of transformers, without its sizes: give the folder with "
            "its config.json"
        )
    some = ", ".join(str(key)[:120] for key in list(names)[:5])
    raise UserError(f"checkpoint {file} is in none of the known formats ({', '.join(known)}); its {kind}: {some}")


def choose_device(device: str) -> torch.device:
    """Return the torch device of this name; `auto` is the GPU if there is one, else the CPU.

    Raises:
        UserError: this machine has no such device.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={device} is not available on this machine ({reason}); use device=cpu") from error
