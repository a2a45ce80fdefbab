"""Checks the user's choices against a model whose file states everything itself."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from openslip.errors import UserError
from openslip.inference.choices import ACTIVATIONS, Choices

_CLASSES = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh"}  # classes of torch and timm


def refuse_other(choices: Choices, model: nn.Module) -> None:
    """Raise if a model that was read has another activation or number of heads than the user chose.

    Args:
        choices: the choices.
        model: the model, with `image_tower` or `text_tower` or both.

    Raises:
        UserError: a choice differs from the model, or the model has nothing to choose there.
    """
    towers = {name: getattr(model, f"{name}_tower", None) for name in ("image", "text")}
    facts: dict[str, tuple[Any, set[Any]]] = {
        "activation": (choices.activation and ACTIVATIONS[choices.activation], {*activations(model)}),
        "image_heads": (choices.image_heads, {*heads(towers["image"])}),
        "text_heads": (choices.text_heads, {*heads(towers["text"])}),
    }
    for name, (chosen, stated) in facts.items():
        if chosen is not None and stated != {chosen}:
            says = ", ".join(map(str, sorted(stated))) or "none"
            raise UserError(f"{name}={getattr(choices, name)}: the file says {says}; leave {name} out")


def activations(model: nn.Module) -> Iterator[str]:
    """List the activations of the MLPs by the names that our models give them."""
    for module in model.modules():
        if isinstance(named := getattr(module, "activation", None), str):
            yield named
        elif isinstance(module, nn.GELU) and module.approximate == "tanh":
            yield "gelu_tanh"
        elif known := _CLASSES.get(type(module).__name__):
            yield known


def heads(tower: Any) -> Iterator[int]:
    """List the numbers of heads of a tower's attention layers, ours and timm's."""
    for module in tower.modules() if isinstance(tower, nn.Module) else ():
        number = getattr(module, "heads", None) or getattr(module, "num_heads", None)
        if isinstance(number, int):
            yield number
