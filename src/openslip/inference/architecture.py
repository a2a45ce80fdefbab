"""Build models and tokenizers from a checkpoint's plain fields; only OpenSLIP's and allowed classes are used."""

import importlib
import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from openslip.errors import UserError
from openslip.inference.files import distinct, unwrapped
from openslip.inference.uninitialised import uninitialised
from openslip.text.tokenizer import Tokenizer

PACKAGES = ("openslip.models.", "openslip.text.")
# Largest ratio of a model's tensors, and of its elements, to those of the stored weights. It is above 1, because some
# buffers are not saved.
EXPANSION = 4
SLACK = 1 << 24  # number of elements that are allowed in addition
MAX_FIELDS = 100_000  # per description
ALIGNMENT = 64  # of memory that torch allocates, in bytes
LARGEST = 10_000  # sizes and counts up to this number are always accepted, even if the weights are small


class TooLargeError(UserError):
    """An architecture in a checkpoint describes a model far larger than the checkpoint's weights."""


def build_model(architecture: Any, allow: Collection[str] = ()) -> nn.Module:
    """Build the model that a checkpoint's `architecture` entry describes.

    Args:
        architecture: the model config, as in a run's config.yaml.
        allow: import paths of your own classes that the config may name.

    Raises:
        UserError: the config names a `_target_` that is neither a class of OpenSLIP nor allowed. This class is never
            called.
    """
    model = build_whole("architecture", architecture, allow)
    if not isinstance(model, nn.Module):
        raise UserError("the checkpoint's architecture describes no model: expected a _target_ at its top")
    return model


def build_with(weights: Mapping[str, Tensor], architecture: Any, allow: Collection[str] = ()) -> nn.Module:
    """Build the model that a checkpoint's `architecture` entry describes and load weights into it.

    Args:
        weights: the model's weights by name.
        architecture: the model config, as in a run's config.yaml.
        allow: import paths of your own classes that the config may name.

    Raises:
        UserError: `build_model` refuses the config, the model is far larger than the weights, or the weights do not fit
            the model. A model that is too large is refused before its memory is allocated.
    """
    model = build_limited(weights, architecture, allow)
    load_weights(model, weights)
    return model


def build_limited(weights: Mapping[str, Tensor], architecture: Any, allow: Collection[str] = ()) -> nn.Module:
    """Build the model of an architecture, without loading the weights: all of them must be loaded next.

    Args:
        weights: weights that limit the size of the model.
        architecture: the model config, as in a run's config.yaml.
        allow: import paths of your own classes that the config may name.

    Raises:
        UserError: `build_model` refuses the config, or the model is far larger than the weights. A model that is too
            large is refused before its memory is allocated.
    """
    # A user's own class may take numbers of any size, and may leave parameters out of its state dict.
    with limited(weights, None if allow else architecture), nullcontext() if allow else uninitialised():
        try:
            with torch.device("meta"):
                build_model(architecture, allow)
        except TooLargeError:
            raise
        except UserError:  # some classes cannot be built on the meta device; real errors are raised by the next build
            pass
        return build_model(architecture, allow)


@contextmanager
def limited(weights: Mapping[str, Tensor], architecture: Any) -> Iterator[None]:
    """Raise TooLargeError as soon as a model that is built in this context becomes far larger than its weights.

    A parameter is counted when it is registered with a module, before it is initialised.

    Args:
        weights: the checkpoint's weights by name; their sizes set the limits on the number of tensors and elements.
        architecture: model config; its integers are checked before anything is built. None skips this check.
    """
    tensors = EXPANSION * len(weights) + 1000
    elements = EXPANSION * sum(tensor.numel() for tensor in weights.values()) + SLACK
    too_large = "the checkpoint's architecture is far larger than its weights: "

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, elements
        if tensor is not None:
            tensors, elements = tensors - 1, elements - tensor.numel()
            if tensors < 0 or elements < 0:
                raise TooLargeError(f"{too_large}{type(module).__name__}.{name} has shape {[*tensor.shape]}")

    largest = max([LARGEST, *(EXPANSION * side for tensor in weights.values() for side in tensor.shape)])
    for value in fields_of(architecture):  # a huge layer count can exhaust memory before any parameter is registered
        if isinstance(value, int) and value > largest:
            raise TooLargeError(f"{too_large}it names {str(value)[:20]}")
    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights into a model; names, shapes and kinds of dtype (floating point or integer) must match exactly.

    The model takes the tensors themselves, without a copy, where it can.

    Raises:
        UserError: names, shapes or kinds of dtype do not match.
    """
    known = model.state_dict()
    # A user's model may have a submodule named `module`. If it has none, data parallelism added this prefix.
    weights = distinct((name if name in known else unwrapped(name), tensor) for name, tensor in weights.items())
    for name, expected in known.items():
        given = weights.get(name)
        if given is not None and (given.is_complex() or given.is_floating_point() != expected.is_floating_point()):
            raise UserError(f"its weight {name} is of {given.dtype}; the model expects {expected.dtype}")
    try:
        if may_take(model, weights):
            model.load_state_dict(
                {name: whole(tensor, known.get(name)) for name, tensor in weights.items()}, assign=True
            )
        else:
            model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"its weights do not fit its architecture ({what})") from error


def may_take(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether the model may use the file's tensors without a copy: no two share memory, in the model or in the file."""
    storages = [tensor.untyped_storage().data_ptr() for tensor in weights.values() if not tensor.is_meta]
    tied = len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False)))
    return len({*storages}) == len(weights) and not tied


def whole(tensor: Tensor, expected: Tensor | None) -> Tensor:
    """Return the tensor with the expected dtype and device, in a storage of its own; copy it only if necessary.

    Its memory has the alignment of torch's own memory, because kernels round differently with another alignment.
    """
    if expected is not None:
        tensor = tensor.to(expected.device, expected.dtype)
    is_all = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    may_stay = is_all and tensor.data_ptr() % ALIGNMENT == 0
    return tensor if may_stay else tensor.clone(memory_format=torch.contiguous_format)


def build_tokenizer(description: Any, allow: Collection[str] = ()) -> Tokenizer | None:
    """Build the tokenizer that a checkpoint's `tokenizer` entry describes; return None if the entry is None."""
    tokenizer = build_whole("tokenizer", description, allow)
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        raise UserError(f"the checkpoint's tokenizer is a {type(tokenizer).__name__}: expected a _target_ at its top")
    return tokenizer


def build_whole(entry: str, description: Any, allow: Collection[str]) -> Any:
    """Build the object that a checkpoint's entry describes; refuse an entry that is too large or nested too deeply.

    Args:
        entry: name of the entry, for error messages.
        description: value of the entry.
        allow: import paths of your own classes that the description may name.
    """
    if len(fields_of(description)) > MAX_FIELDS:
        raise UserError(f"the checkpoint's {entry} has more than {MAX_FIELDS:,} fields")
    try:
        return build(description, allow)
    except RecursionError as error:
        raise UserError(f"the checkpoint's {entry} is nested too deeply") from error


def fields_of(description: Any) -> list[Any]:
    """List all values in nested dicts and lists; stop after MAX_FIELDS, because a container may contain itself."""
    fields = [description]
    for value in fields:
        if len(fields) > MAX_FIELDS:
            break
        if isinstance(value, dict | list | tuple):
            fields.extend(islice(value.values() if isinstance(value, dict) else value, MAX_FIELDS))
    return fields


def build(description: Any, allow: Collection[str]) -> Any:
    """Turn nested dicts with `_target_`s into objects; every class is checked by `find_class` before it is called."""
    if isinstance(description, (list, tuple)):
        return [build(value, allow) for value in description]
    if not isinstance(description, dict):
        return description
    target = description.get("_target_")
    if not isinstance(target, str | None):
        raise UserError(f"the checkpoint names a _target_ that is a {type(target).__name__}; expected an import path")
    builder = None if target is None else find_class(target, allow)
    fields = {key: build(value, allow) for key, value in description.items() if key != "_target_"}
    if builder is None:
        return fields
    parameters = inspect.signature(builder).parameters
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    if wrong := (fields.keys() - parameters.keys()) | (required - fields.keys()):
        raise UserError(
            f"the checkpoint's {target} has unexpected or missing fields for this version: "
            f"{', '.join(sorted(map(str, wrong)))}"
        )
    try:
        return builder(**fields)
    except (UserError, RecursionError):
        raise
    except Exception as error:  # wrong field values can raise any exception in a constructor
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the checkpoint's {target} cannot be built: {reason}") from error


def find_class(target: str, allow: Collection[str]) -> Any:
    """Import the class at an import path, or refuse it if a checkpoint may not name it."""
    module, _, name = target.rpartition(".")
    if not target.startswith(PACKAGES) and target not in allow:
        raise UserError(
            f"the checkpoint names _target_ {target!r}, which is not a model class of OpenSLIP: refused; "
            f"if it is your own class, allow it by name (allow=[{target}])"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"the checkpoint's {target} cannot be imported ({error}); is it on PYTHONPATH?") from error
    own = isinstance(found, type) and issubclass(found, nn.Module | Tokenizer) and found.__module__ == module
    if target not in allow and not own:
        raise UserError(f"the checkpoint names _target_ {target!r}, which is not a model class of OpenSLIP: refused")
    return found
