"""Translates names of weights in lukemelas' EfficientNet-PyTorch and its Lite variants to timm's names.

Sources: `efficientnet_lite_pytorch/model.py` 0.1.0 and timm's `models/_efficientnet_blocks.py`.
"""

import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from openslip.errors import UserError

TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
UNEXPANDED = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK = re.compile(r"_blocks\.(\d+)\.(.+)")


def timm_weights(weights: Mapping[str, Tensor], model: str) -> dict[str, Tensor]:
    """Rename the weights of an EfficientNet without squeeze-and-excitation.

    Args:
        weights: weights by their names in EfficientNet-PyTorch, the classifier's included.
        model: name of timm's model.

    Returns:
        Weights by their names in timm's model.

    Raises:
        UserError: names or shapes are not those of the model.
    """
    with torch.device("meta"):
        trunk: Any = timm.create_model(model)
    expected = {name: tensor.shape for name, tensor in trunk.state_dict().items()}
    places = [f"blocks.{stage}.{block}" for stage, blocks in enumerate(trunk.blocks) for block in range(len(blocks))]
    renamed = {timm_name(name, weights, places): tensor.contiguous() for name, tensor in weights.items()}
    shapes = {name: tensor.shape for name, tensor in renamed.items()}
    if shapes != expected:
        differing = sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name))
        raise UserError(
            f"weights of {model}: {len(differing)} of {len(expected)} are missing, unexpected or of another shape, "
            f"such as {', '.join(differing[:3])}: expected EfficientNet-PyTorch's"
        )
    return renamed


def timm_name(name: str, weights: Mapping[str, Tensor], places: list[str]) -> str:
    """Return timm's name of a weight, or the given name if it is none of EfficientNet-PyTorch's."""
    if not (block := BLOCK.fullmatch(name)):
        layer, _, parameter = name.partition(".")
        return f"{TOP.get(layer, layer)}.{parameter}"
    number, (layer, _, parameter) = int(block[1]), block[2].partition(".")
    is_expanded = f"_blocks.{number}._expand_conv.weight" in weights
    layers = EXPANDED if is_expanded else UNEXPANDED
    place = places[number] if number < len(places) else f"blocks.{number}"
    return f"{place}.{layers.get(layer, layer)}.{parameter}"
