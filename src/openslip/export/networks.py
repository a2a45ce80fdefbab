"""Compares how two networks compute, since equal weights do not show heads, activations, epsilons or pooling."""

import re
from typing import Any

from timm.layers.drop import DropPath
from timm.layers.patch_dropout import PatchDropout
from torch import nn

from openslip.inference.stated import activations

# Layers that do nothing in evaluation mode.
IDLE = (nn.Identity, nn.Dropout, DropPath, PatchDropout)
# Settings that have no influence on features in evaluation mode.
IGNORED = {"training", "fused_attn", "num_classes", "grad_checkpointing", "inplace", "momentum", "drop_rate"}
IGNORED |= {"head_dim", "scale"}  # of attention: they follow from the number of heads


def differences(ours: nn.Module, theirs: nn.Module) -> list[str]:
    """List where two networks would compute different features with the same weights in evaluation mode.

    Of equal differences in several blocks, the list has the first.

    Args:
        ours: network of the exported model.
        theirs: network that the target library would build; it may be on the meta device.
    """
    found = _compare(
        {name: str(tuple(weight.shape)) for name, weight in ours.state_dict().items()},
        {name: str(tuple(weight.shape)) for name, weight in theirs.state_dict().items()},
    )
    layers, other_layers = (dict(m.named_modules()) for m in (ours, theirs))
    for name in layers.keys() | other_layers.keys():
        pair = [settings(group.get(name)) for group in (layers, other_layers)]
        found += _compare(*({f"{name}.{key}".lstrip("."): value for key, value in part.items()} for part in pair))
    return [*{re.sub(r"\.\d+\.", ".N.", reason): reason for reason in sorted(found, reverse=True)}.values()][::-1]


def settings(layer: nn.Module | None) -> dict[str, Any]:
    """Return the class of a layer and its settings; empty for a layer that does nothing in evaluation mode."""
    if layer is None or isinstance(layer, IDLE):
        return {}
    plain = {
        key: value
        for key, value in vars(layer).items()
        if isinstance(value, bool | int | float | str | tuple) and key not in IGNORED and not key.startswith("_")
    }
    if activation := [*activations(layer)] if not [*layer.children()] else []:
        return {"activation": activation[0]}
    return {"class": type(layer).__name__} | plain


def _compare(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [
        f"{name} {ours.get(name, 'none')} (there {theirs.get(name, 'none')})"
        for name in ours.keys() | theirs.keys()
        if ours.get(name) != theirs.get(name)
    ]
