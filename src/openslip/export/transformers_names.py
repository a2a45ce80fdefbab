"""Weights by transformers' names: the inverse of what `openslip.inference.layouts.huggingface` reads."""

from collections.abc import Mapping

import torch
from torch import Tensor

from openslip.inference.layouts.huggingface import CLIP_IMAGE_NAMES, IMAGE_NAMES, TEXT_NAMES
from openslip.inference.layouts.keys import Table, table, translate

_SCALARS = (("logit_scale", "logit_scale"), ("logit_bias", "logit_bias"))
_PROJECTIONS = (("visual_projection.weight", "image_projection"), ("text_projection.weight", "text_projection"))
_SIGLIP = (
    ("vision_model.embeddings.position_embedding.weight", "image_tower.trunk.pos_embed"),
    ("vision_model.head.probe", "image_tower.trunk.attn_pool.latent"),
    ("vision_model.head.attention.in_proj_", "image_tower.trunk.attn_pool.in_proj_"),  # joined before
    ("vision_model.head.attention.out_proj.", "image_tower.trunk.attn_pool.proj."),
    ("vision_model.head.layernorm.", "image_tower.trunk.attn_pool.norm."),
    ("vision_model.head.mlp.", "image_tower.trunk.attn_pool.mlp."),
    ("text_model.head.weight", "text_projection"),
    ("text_model.head.bias", "text_projection_bias"),
)


def inverse(pairs: tuple[tuple[str, str], ...]) -> Table:
    """Compile pairs of their and our names as a table from ours to theirs."""
    return table((ours, theirs) for theirs, ours in pairs)


CLIP = inverse((*_SCALARS, *_PROJECTIONS, *TEXT_NAMES, *CLIP_IMAGE_NAMES))
SIGLIP = inverse((*_SCALARS, *_SIGLIP, *TEXT_NAMES, *IMAGE_NAMES))
DUAL_ENCODER = inverse((*_SCALARS, *_PROJECTIONS, *TEXT_NAMES, ("vision_model.timm_model.", "image_tower.trunk.")))


def to_transformers(weights: Mapping[str, Tensor], names: Table) -> dict[str, Tensor]:
    """Rename and reshape weights to transformers' form; the values are not copied where they need not be.

    Args:
        weights: the state dict of our model.
        names: CLIP, SIGLIP or DUAL_ENCODER.
    """
    state = join_pool(weights)
    converted: dict[str, Tensor] = {}
    for ours, weight in state.items():
        name = translate(ours, names)
        assert name is not None, ours
        if ours in ("image_projection", "text_projection"):  # theirs are linear layers, [embed, width]
            weight = weight.T
        elif names is SIGLIP and ours in ("logit_scale", "logit_bias"):
            weight = weight.reshape(1)
        elif name.endswith(("class_embedding", "position_embedding.weight")):  # timm's have a batch dimension
            weight = weight.reshape(weight.shape[-1:] if name.endswith("class_embedding") else (-1, weight.shape[-1]))
        if ".self_attn.in_proj." in name:
            for letter, part in zip("qkv", weight.chunk(3), strict=True):
                converted[name.replace(".in_proj.", f".{letter}_proj.")] = part
        else:
            converted[name] = weight
    return converted


def join_pool(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the projections of SigLIP's pooling head to queries, and to keys and values, which timm keeps apart."""
    state = dict(weights)
    pool = "image_tower.trunk.attn_pool."
    for kind in ("weight", "bias"):
        if f"{pool}q.{kind}" in state:
            parts = [state.pop(f"{pool}{name}.{kind}") for name in ("q", "kv")]
            state[f"{pool}in_proj_{kind}"] = torch.cat(parts)
    return state
