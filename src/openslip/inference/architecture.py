"""Models and tokenizers built of a checkpoint's plain fields; only of OpenSLIP's own classes and allowed ones."""

import importlib
import inspect
from collections.abc import Collection
from typing import Any

from torch import nn

from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer

PACKAGES = ("openslip.models.", "openslip.text.")


def build_model(architecture: Any, allow: Collection[str] = ()) -> nn.Module:
    """The model that plain fields describe.

    Args:
        architecture: a model config as it stands in a run's config.yaml.
        allow: import paths of classes of your own that the description may name.

    Raises:
        UserError: it names a `_target_` that is neither OpenSLIP's nor allowed; nothing is built then.
    """
    model = build(architecture, allow)
    if not isinstance(model, nn.Module):
        raise UserError("the checkpoint's architecture describes no model: expected a _target_ at its top")
    return model


def build_tokenizer(description: Any, allow: Collection[str] = ()) -> Tokenizer | None:
    """The tokenizer that plain fields describe; None where there are none."""
    return None if description is None else build(description, allow)


def build(description: Any, allow: Collection[str]) -> Any:
    """The object of a nest of dicts with `_target_`s; every class is looked at before it is called."""
    if isinstance(description, (list, tuple)):
        return [build(value, allow) for value in description]
    if not isinstance(description, dict):
        return description
    target = description.get("_target_")
    builder = None if target is None else find_class(str(target), allow)
    fields = {key: build(value, allow) for key, value in description.items() if key != "_target_"}
    if builder is None:
        return fields
    parameters = inspect.signature(builder).parameters
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    if wrong := (fields.keys() - parameters.keys()) | (required - fields.keys()):
        raise UserError(
            f"the checkpoint's {target} has other fields than this version expects: {', '.join(sorted(wrong))}"
        )
    try:
        return builder(**fields)
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, ZeroDivisionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the checkpoint's {target} cannot be built: {reason}") from error


def find_class(target: str, allow: Collection[str]) -> Any:
    """The class at an import path, if a checkpoint may name it."""
    module, _, name = target.rpartition(".")
    if not target.startswith(PACKAGES) and target not in allow:
        raise UserError(
            f"the checkpoint names _target_ {target!r}, none of OpenSLIP's model classes: refused; "
            f"if it is yours, allow it by name (allow=[{target}])"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"the checkpoint's {target} cannot be imported ({error}); is it on PYTHONPATH?") from error
    own = isinstance(found, type) and issubclass(found, nn.Module | Tokenizer) and found.__module__ == module
    if target not in allow and not own:
        raise UserError(f"the checkpoint names _target_ {target!r}, which is no model class of OpenSLIP: refused")
    return found
