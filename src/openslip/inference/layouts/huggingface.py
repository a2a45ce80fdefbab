"""Folders of transformers: `config.json` and weights.

Names of weights, defaults of settings, and which file of weights is preferred, are those of transformers 5.24. The
library itself is not needed.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.architecture import build_limited
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices, agree
from openslip.inference.layouts.folder import file_in, peek_json, read_json, weights_in
from openslip.inference.layouts.keys import Table, fit, rename
from openslip.inference.layouts.openai import scalars
from openslip.inference.layouts.vision_transformer import vision_transformer
from openslip.text.tokenizer import Tokenizer

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
# Settings of transformers' classes that a file may leave out.
TEXT: dict[str, dict[str, Any]] = {
    "clip": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "eos_token_id": 49407,
    },
    "siglip": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 64,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}
VISION: dict[str, dict[str, Any]] = {
    "clip": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "siglip": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "vision_use_head": True,
    },
}

_BLOCK = (
    ("layer_norm1.", "norm1.", "ln_1."),
    ("layer_norm2.", "norm2.", "ln_2."),
    ("self_attn.in_proj.", "attn.qkv.", "attention.in_proj."),
    ("self_attn.out_proj.", "attn.proj.", "attention.out_proj."),
    ("mlp.fc1.", "mlp.fc1.", "fc1."),
    ("mlp.fc2.", "mlp.fc2.", "fc2."),
)
# Pairs of a foreign name and ours, for weights of the text tower, and for those of the image tower that CLIP and SigLIP
# share.
TEXT_NAMES = (
    ("text_model.embeddings.token_embedding.", "text_tower.token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "text_tower.positional_embedding"),
    ("text_model.final_layer_norm.", "text_tower.ln_final."),
    *((f"text_model.encoder.layers.{{n}}.{theirs}", f"text_tower.blocks.{{n}}.{ours}") for theirs, _, ours in _BLOCK),
)
IMAGE_NAMES = (
    ("vision_model.embeddings.patch_embedding.", "image_tower.trunk.patch_embed.proj."),
    ("vision_model.post_layernorm.", "image_tower.trunk.norm."),
    *(
        (f"vision_model.encoder.layers.{{n}}.{theirs}", f"image_tower.trunk.blocks.{{n}}.{ours}")
        for theirs, ours, _ in _BLOCK
    ),
)
CLIP_IMAGE_NAMES = (
    ("vision_model.embeddings.class_embedding", "image_tower.trunk.cls_token"),
    ("vision_model.embeddings.position_embedding.weight", "image_tower.trunk.pos_embed"),
    ("vision_model.pre_layrnorm.", "image_tower.trunk.norm_pre."),
    *IMAGE_NAMES,
)
PROJECTIONS = {"visual_projection.weight": "image_projection", "text_projection.weight": "text_projection"}


def describes(folder: Path, kinds: Collection[str]) -> bool:
    """Tell whether the folder's `config.json` describes a model of these types.

    A folder that also has open_clip's config belongs to transformers only if it has a file of weights with a name that
    transformers uses, such as `model.safetensors`.
    """
    own = any((folder / f"{name}{end}").exists() for name in WEIGHTS for end in ("", ".index.json"))
    if not own and (folder / "open_clip_config.json").exists():
        return False
    return peek_json(folder, "config.json").get("model_type") in kinds


def config_in(folder: Path) -> dict[str, Any]:
    """Read `config.json`; a config that names code of its own is refused.

    Raises:
        UserError: the file is missing or no JSON object, or it names classes in files of the folder (`auto_map`).
    """
    if (path := file_in(folder, "config.json")) is None:
        raise UserError(f"{folder} has no config.json")
    config = read_json(path)
    if "auto_map" in config:
        raise UserError(f"{path} names code of its own (auto_map: {str(config['auto_map'])[:120]}): refused, not run")
    return config


def part(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Check a nested config (`text_config` or `vision_config`) and return it, completed by the default values.

    CLIP's first configs have the nested config a second time, as `text_config_dict`. If it exists, it is read instead.

    Raises:
        UserError: a setting has a wrong type.
    """
    nested = config.get(f"{name}_dict")
    nested = (config.get(name) or {}) if nested is None else nested
    if not isinstance(nested, Mapping):
        raise UserError(f"config.json: {name} is a {type(nested).__name__}; expected an object")
    settings = {key: nested.get(key, default) for key, default in defaults.items()}
    for key, value in settings.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        whole = number and isinstance(value, int)
        kind = defaults[key]
        if not {bool: isinstance(value, bool), int: whole, float: number, str: isinstance(value, str)}[type(kind)]:
            raise UserError(f"config.json: {name}.{key} is {str(value)[:80]!r}; expected a value such as {kind!r}")
    return settings


def activation_of(settings: Mapping[str, Any], choices: Choices) -> str:
    """Return our name of the activation that a config states.

    Raises:
        UserError: we have no such activation, or the user chose another one.
    """
    if settings["hidden_act"] not in ACTIVATIONS:
        raise UserError(
            f"config.json: hidden_act is {settings['hidden_act'][:80]!r}; expected one of {', '.join(ACTIVATIONS)}"
        )
    return choices.check_activation(ACTIVATIONS[settings["hidden_act"]])


def text_tower(settings: Mapping[str, Any], choices: Choices, *, causal: bool) -> dict[str, Any]:
    """Return the config of the text tower."""
    return {
        "_target_": "openslip.models.text_transformer.TextTransformer",
        "vocab_size": settings["vocab_size"],
        "context_length": settings["max_position_embeddings"],
        "width": settings["hidden_size"],
        "depth": settings["num_hidden_layers"],
        "heads": agree("text_heads", settings["num_attention_heads"], choices.text_heads),
        "mlp_width": settings["intermediate_size"],
        "activation": activation_of(settings, choices),
        "causal": causal,
        "pooling": "last",
        "norm_eps": settings["layer_norm_eps"],
    }


def image_tower(name: str, settings: Mapping[str, Any], choices: Choices) -> dict[str, Any]:
    """Return the config of a ViT as a tower of timm; `name` is the timm model with the same layers."""
    if settings["num_channels"] != 3:
        raise UserError(f"config.json: vision_config.num_channels is {settings['num_channels']}; expected 3")
    return vision_transformer(
        name,
        image_size=settings["image_size"],
        patch_size=settings["patch_size"],
        width=settings["hidden_size"],
        depth=settings["num_hidden_layers"],
        heads=agree("image_heads", settings["num_attention_heads"], choices.image_heads),
        mlp_width=settings["intermediate_size"],
        activation=activation_of(settings, choices),
        norm_eps=settings["layer_norm_eps"],
    )


def assemble(
    folder: Path,
    architecture: dict[str, Any],
    weights: tuple[Path, Mapping[str, Tensor]],
    tokenizer: Tokenizer | None,
    transform: EvalTransform,
) -> Bundle:
    """Build the model, and fit the weights, which have our names, to it."""
    path, state = weights
    model = build_limited(state, architecture)
    fit(model, state, path)
    return Bundle(model, tokenizer, transform, architecture, torch.device("cpu"), origin=str(folder))


def read_weights(folder: Path, names: Table) -> tuple[Path, dict[str, Tensor]]:
    """Read a folder's weights by our names; join queries, keys and values, and transpose projections."""
    path, weights = weights_in(folder, WEIGHTS)
    weights = {name: weight for name, weight in weights.items() if not name.endswith(".position_ids")}
    state = rename(join_qkv(weights), names)
    for theirs, ours in PROJECTIONS.items():
        if theirs in state and state[theirs].ndim == 2:
            state[ours] = state.pop(theirs).T.contiguous()
    for name in ("image_tower.trunk.cls_token", "image_tower.trunk.pos_embed"):  # timm's have a batch dimension
        if name in state:
            state[name] = state[name].reshape(1, -1, state[name].shape[-1])
    return path, scalars(state)


def join_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the query, key and value projections of each attention layer into one."""
    joined = dict(weights)
    for name in weights:
        if ".self_attn.q_proj." in name:
            names = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
            if all(other in weights and weights[other].ndim == weights[name].ndim for other in names):
                joined[name.replace(".q_proj.", ".in_proj.")] = torch.cat([joined.pop(other) for other in names])
    return joined
