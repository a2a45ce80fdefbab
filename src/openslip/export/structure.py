"""What a model's layers are, read from its modules: which class of another library has the same."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from openslip.inference.stated import activations, heads
from openslip.inference.uninitialised import uninitialised
from openslip.models.text_transformer import TextTransformer
from openslip.models.timm_tower import TimmTower

_BLOCK = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
_POOL = ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")
# Weights of CLIP's and of SigLIP's vision transformer by timm's names, besides those of the blocks.
CLIP_WEIGHTS = {"cls_token", "pos_embed", "patch_embed.proj.weight"} | {
    f"{layer}.{kind}" for layer in ("norm_pre", "norm") for kind in ("weight", "bias")
}
SIGLIP_WEIGHTS = {"pos_embed", "attn_pool.latent"} | {
    f"{layer}.{kind}"
    for layer in ("patch_embed.proj", "norm", *(f"attn_pool.{name}" for name in _POOL))
    for kind in ("weight", "bias")
}


@dataclass(frozen=True)
class Transformer:
    """Sizes and settings that all blocks of a transformer share.

    Attributes:
        width: width of token features.
        depth: number of blocks.
        heads: attention heads per block.
        mlp_width: width of the MLPs' hidden layer.
        activation: activation of the MLPs: `quick_gelu`, `gelu` or `gelu_tanh`.
        norm_eps: epsilon of all layer norms.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    activation: str
    norm_eps: float


def text_transformer(tower: nn.Module) -> Transformer | None:
    """Return the settings of CLIP's text transformer; None for another tower."""
    if type(tower) is not TextTransformer:
        return None
    blocks: Any = tower.blocks
    return uniform(tower, tower.width, len(blocks), [block.fc1.out_features for block in blocks])


def vision_transformer(tower: nn.Module, weights: Iterable[str], pooling: str) -> Transformer | None:
    """Return the settings of a tower that is timm's plain vision transformer with exactly these weights.

    Args:
        tower: the image tower.
        weights: names of all weights besides those of the blocks.
        pooling: timm's name of the pooling: `token` or `map`.
    """
    if not isinstance(tower, TimmTower) or type(tower.trunk) is not VisionTransformer:
        return None
    trunk: Any = tower.trunk
    depth = len(trunk.blocks)
    blocks = {f"blocks.{n}.{layer}.{kind}" for n in range(depth) for layer in _BLOCK for kind in ("weight", "bias")}
    patch, image = trunk.patch_embed.patch_size, trunk.patch_embed.img_size
    if {*trunk.state_dict()} != {*weights} | blocks or trunk.global_pool != pooling or trunk.no_embed_class:
        return None
    positions = math.prod(trunk.patch_embed.grid_size) + (pooling == "token")
    if patch[0] != patch[1] or image[0] != image[1] or trunk.pos_embed.shape[1] != positions:
        return None
    hidden = [block.mlp.fc1.out_features for block in trunk.blocks]
    return uniform(trunk, trunk.embed_dim, depth, hidden)


def uniform(tower: nn.Module, width: int, depth: int, hidden: list[int]) -> Transformer | None:
    """Return the settings of a transformer's blocks; None if they differ, or if a norm is no layer norm."""
    values = [{*heads(tower)}, {*hidden}, {*activations(tower)}, {*norm_eps(tower)}]
    if any(len(value) != 1 for value in values):
        return None
    (num_heads,), (mlp_width,), (activation,), (eps,) = values
    return Transformer(width, depth, num_heads, mlp_width, activation, eps)


def norm_eps(module: nn.Module) -> list[float]:
    """List the epsilons of a module's layer norms."""
    return [layer.eps for layer in module.modules() if isinstance(layer, nn.LayerNorm)]


def timm_arguments(tower: nn.Module, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments with which `timm.create_model` builds a tower; None if it then has other layer norms.

    Args:
        tower: the image tower.
        config: its config in the architecture.
    """
    if not isinstance(tower, TimmTower):
        return None
    name, arguments = config["name"], dict(config["arguments"])
    for given in (arguments | {"img_size": config["image_size"]}, arguments):  # not all models take a size
        try:
            with uninitialised():
                trunk = timm.create_model(name, pretrained=False, num_classes=0, **given)
        except TypeError:
            continue
        # No argument that JSON can hold sets an epsilon.
        return given if norm_eps(trunk) == norm_eps(tower.trunk) else None
    return None
