"""`open_clip_config.json`: settings of open_clip 3.3 (dataclasses in its model.py), with its defaults.

A setting that is not implemented here causes an error that names it, so that no model silently differs from
open_clip's.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.layouts import transforms

# Widths at which all models of open_clip 3.3 (its folder model_configs) have 64 channels per head. Larger image towers
# have 72 (SO400M), 80 (H), 88 (g), 104 (bigG) or 112 (e).
VIT_WIDTHS = (384, 512, 768, 896, 1024)
RESNET_WIDTHS = (2048, 2560, 3072, 4096)
TEXT_WIDTHS = (256, 384, 512, 640, 768, 1024, 1280)

# Settings of attention blocks that no published model uses.
_BLOCKS: dict[str, Any] = {
    "ls_init_value": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
# Settings that are read, with their defaults.
_READ: dict[str, dict[str, Any]] = {
    "model_cfg": {
        "embed_dim": None,
        "vision_cfg": {},
        "text_cfg": {},
        "quick_gelu": False,
        "multimodal_cfg": None,
        "timm_arguments": None,  # not open_clip's: arguments of a trunk that timm has no name for
    },
    "vision_cfg": {
        "layers": 12,
        "width": 768,
        "head_width": 64,
        "mlp_ratio": 4.0,
        "patch_size": 16,
        "image_size": 224,
        "attentional_pool": False,
        "attn_pooler_queries": 256,
        "attn_pooler_heads": 8,
        "act_kwargs": None,
        "norm_kwargs": None,
        "timm_model_name": None,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "hf_tokenizer_name": None,
        "tokenizer_kwargs": None,
        "width": 512,
        "heads": 8,
        "layers": 12,
        "mlp_ratio": 4.0,
        "embed_cls": False,
        "eos_id": 2,
        "no_causal_mask": False,
        "pool_type": "argmax",
        "act_kwargs": None,
        "norm_kwargs": None,
    },
    "preprocess_cfg": {
        "size": None,
        "mean": transforms.OPENAI["mean"],
        "std": transforms.OPENAI["std"],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
# Settings that must have this value; with another value the model is another one.
_FIXED: dict[str, dict[str, Any]] = {
    "model_cfg": {},
    "vision_cfg": _BLOCKS | {"no_ln_pre": False, "final_ln_after_pool": False, "pool_type": "tok"},
    "text_cfg": _BLOCKS
    | {"pad_id": 0, "proj_type": "linear", "tokenizer_mode": None, "hf_model_name": None, "final_ln_after_pool": False},
    "preprocess_cfg": {"mode": "RGB", "fill_color": 0},
}
# Settings that matter in training only, or that the weights show.
_IGNORED: dict[str, set[str]] = {
    "model_cfg": {"custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "cast_dtype"},
    "vision_cfg": {
        *("patch_dropout", "output_tokens", "pos_embed_type", "timm_model_pretrained", "timm_proj_bias"),
        *("timm_drop", "timm_drop_path"),
    },
    "text_cfg": {"output_tokens", "proj_bias", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"},
    "preprocess_cfg": set(),
}


def settings(config: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """Return the settings of a part of the config, completed by open_clip's defaults.

    Args:
        config: the object that holds the part.
        name: `model_cfg`, `vision_cfg`, `text_cfg` or `preprocess_cfg`.
        path: the file, for the error.

    Raises:
        UserError: the part is no object, or a setting is unknown or has a value that is not implemented.
    """
    given = config.get(name, {})
    if not isinstance(given, Mapping):
        raise UserError(f"{path}: {name} is a {type(given).__name__}; expected an object")
    for key, value in given.items():
        if key in _FIXED[name]:
            if value != _FIXED[name][key]:
                raise UserError(
                    f"{path}: {name}.{key}={str(value)[:80]} is not implemented (only {_FIXED[name][key]}); "
                    "open_clip itself can load the model: openslip.load('open_clip:NAME/WEIGHTS')"
                )
        elif key not in _READ[name] and key not in _IGNORED[name]:
            raise UserError(f"{path}: the setting {name}.{key[:80]} is unknown, so the model could be another one")
    return _READ[name] | {key: value for key, value in given.items() if key in _READ[name]}


def number(part: Mapping[str, Any], key: str, path: Path) -> int:
    """Return a setting that is a positive whole number; a pair of equal numbers counts as one.

    Raises:
        UserError: it is something else.
    """
    value = part[key]
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{path}: {key} is {str(value)[:80]}; expected a whole number, at least 1")
    return value


def hidden_width(part: Mapping[str, Any], width: int, path: Path) -> int:
    """Return the width of the MLPs' hidden layer, as open_clip computes it."""
    ratio = part["mlp_ratio"]
    if not isinstance(ratio, int | float) or not math.isfinite(ratio):
        raise UserError(f"{path}: mlp_ratio is {str(ratio)[:80]}; expected a number")
    return int(width * ratio)


def activation(part: Mapping[str, Any], path: Path, *, quick_gelu: bool) -> str:
    """Return our name of the activation that a part states."""
    arguments = part["act_kwargs"] or {}
    if arguments == {}:
        return "quick_gelu" if quick_gelu else "gelu"
    if arguments in ({"approximate": "tanh"}, {"approximate": "none"}) and not quick_gelu:
        return "gelu_tanh" if arguments["approximate"] == "tanh" else "gelu"
    raise UserError(f"{path}: act_kwargs={str(arguments)[:80]} with quick_gelu={quick_gelu} is not implemented")


def norm_eps(part: Mapping[str, Any], path: Path) -> float:
    """Return the epsilon of the layer norms that a part states."""
    arguments = part["norm_kwargs"] or {}
    eps = arguments.get("eps", 1e-5) if isinstance(arguments, Mapping) else None
    if not isinstance(eps, float) or not 0 < eps < 1 or set(arguments) - {"eps"}:
        raise UserError(f"{path}: norm_kwargs={str(arguments)[:80]} is not implemented (only eps)")
    return eps


def transform(config: Mapping[str, Any], size: int, path: Path) -> EvalTransform:
    """Return the evaluation transform that `preprocess_cfg` describes.

    Raises:
        UserError: a setting is not implemented or has a wrong type.
    """
    part = settings(config, "preprocess_cfg", path)
    if part["size"] is not None and number(part, "size", path) != size:
        raise UserError(f"{path}: preprocess_cfg.size is {part['size']}, and the model takes images of {size}")
    try:
        values = {key: part[key] if isinstance(part[key], list) else [part[key]] * 3 for key in ("mean", "std")}
        values = {key: [float(value) for value in channels] for key, channels in values.items()}
        if any(len(channels) != 3 or not all(map(math.isfinite, channels)) for channels in values.values()):
            raise ValueError("expected three finite numbers each")
        if min(values["std"]) <= 0:
            raise ValueError("expected positive deviations")
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: preprocess_cfg: mean or std: {error}") from error
    # open_clip interprets `random` as bicubic outside of training.
    interpolation = "bicubic" if part["interpolation"] == "random" else part["interpolation"]
    for key in ("interpolation", "resize_mode"):
        if not isinstance(part[key], str):
            raise UserError(f"{path}: preprocess_cfg.{key} is {str(part[key])[:80]}; expected a name")
    resize = {"interpolation": interpolation, "resize": part["resize_mode"]}
    return EvalTransform(size=size, **values, **resize, **transforms.AS_PUBLISHED)
