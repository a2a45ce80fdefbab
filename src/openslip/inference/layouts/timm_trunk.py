"""Image towers of open_clip that timm builds: `visual.trunk.` has timm's names, `visual.head.proj` projects."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from openslip.errors import UserError
from openslip.inference.choices import Choices, agree, heads
from openslip.inference.layouts import open_clip_config as configs
from openslip.inference.layouts.keys import number_of, rename, shape, table
from openslip.inference.layouts.openai import TEXT, grid, mlp_ratio, scalars

PLAIN = "vit_base_patch16_224"  # timm's vision transformer; all sizes are given as arguments
POOLS = ("", "token", "avg", "map")
_ARGUMENTS = (
    *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes", "class_token"),
    *("global_pool", "act_layer", "pre_norm", "qk_norm", "init_values", "no_embed_class"),
)
_NAMES = table(
    (
        *TEXT,
        ("visual.trunk.", "image_tower.trunk."),
        ("visual.head.proj.weight", "image_projection"),
        ("visual.head.proj.bias", "image_projection_bias"),
    )
)


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to ours, and transpose linear layers; unknown weights keep their names."""
    linear = ("visual.head.proj.weight", "text_projection.weight")
    weights = {name: weight.T if name in linear and weight.ndim == 2 else weight for name, weight in weights.items()}
    return scalars(rename(weights, _NAMES))


def image_tower(
    weights: Mapping[str, Tensor], part: Mapping[str, Any], arguments: Any, choices: Choices, path: Path
) -> dict[str, Any]:
    """Return the config of a tower that timm builds.

    If timm does not have the name, the model is a plain vision transformer of the sizes of its weights; its activation,
    and its heads if the width does not tell them, are then asked for, unless `timm_arguments` states them.

    Args:
        weights: weights by open_clip's names.
        part: `vision_cfg`.
        arguments: `timm_arguments`, which a config may have for a trunk that timm has no name for.
        choices: activation and heads, for a name that timm does not have.
        path: the config file, for errors.

    Raises:
        UserError: a setting is not implemented, or a choice is needed.
    """
    name, pool = part["timm_model_name"], part["timm_pool"] or ""
    if not isinstance(name, str) or pool not in POOLS:
        raise UserError(f"{path}: timm_model_name={str(name)[:80]}, timm_pool={str(pool)[:80]} are not implemented")
    if part["timm_proj"] not in ("linear", "none"):
        raise UserError(f"{path}: vision_cfg.timm_proj={part['timm_proj']} is not implemented (only linear and none)")
    pooling: dict[str, Any] = {"global_pool": pool} if pool else {}
    if pool == "avg" and "visual.trunk.norm.weight" in weights and _is_vit(name):
        # timm would build the norm after this pooling. open_clip sets the pooling after it has built the trunk, so the
        # norm is before it.
        pooling["fc_norm"] = False
    if timm.is_model(name) and arguments is None:
        return _tower(name, configs.number(part, "image_size", path), pooling)
    if arguments is None:
        arguments = _by_shapes(weights, choices, path)
    elif not isinstance(arguments, Mapping) or arguments.keys() - {*_ARGUMENTS}:
        raise UserError(f"{path}: timm_arguments: {str(arguments)[:200]} has unknown arguments; expected {_ARGUMENTS}")
    else:
        agree("image_heads", arguments.get("num_heads"), choices.image_heads)
    kept = {key: value for key, value in arguments.items() if key not in ("img_size", "num_classes")}
    return _tower(PLAIN, configs.number(part, "image_size", path), kept | pooling)


def _is_vit(name: str) -> bool:
    built = name if timm.is_model(name) else PLAIN
    return timm.model_entrypoint(built).__module__ == timm.model_entrypoint(PLAIN).__module__


def _tower(name: str, image_size: int, arguments: dict[str, Any]) -> dict[str, Any]:
    target = "openslip.models.timm_tower.TimmTower"
    return {"_target_": target, "name": name, "image_size": image_size, "arguments": arguments}


def _by_shapes(weights: Mapping[str, Tensor], choices: Choices, path: Path) -> dict[str, Any]:
    width, _, patch, _ = shape(weights, "visual.trunk.patch_embed.proj.weight", ndim=4)
    hidden = shape(weights, "visual.trunk.blocks.0.mlp.fc1.weight", ndim=2)[0]
    positions = shape(weights, "visual.trunk.pos_embed", ndim=3)[1]
    has_class_token = "visual.trunk.cls_token" in weights
    grid(positions - has_class_token, "visual.trunk.pos_embed")
    return {
        "patch_size": patch,
        "embed_dim": width,
        "depth": number_of(weights, "visual.trunk.blocks."),
        "num_heads": heads(path, "image_heads", width, choices.image_heads, known=configs.VIT_WIDTHS),
        "mlp_ratio": mlp_ratio(width, hidden),
        "class_token": has_class_token,
        "act_layer": choices.need_activation(),
    }
