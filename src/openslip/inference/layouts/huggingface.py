"""Folders of transformers: `config.json`, `preprocessor_config.json`, `tokenizer.json` and weights.

Names of weights, defaults of settings and the order of files are those of transformers 5.24. The library itself is not
needed.
"""

import base64
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openslip.data.image.eval_transform import EvalTransform
from openslip.distributed import notice_once
from openslip.errors import UserError
from openslip.inference.architecture import build_limited
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices, agree
from openslip.inference.layouts.folder import file_in, peek_json, read_json, weights_in
from openslip.inference.layouts.keys import Table, fit, rename
from openslip.inference.layouts.openai import CLIP_VOCABULARY, mlp_ratio, scalars
from openslip.inference.layouts.transforms import OPENAI
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.sentencepiece_model import SentencePieceModel
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import TokenizerJson, clip_definition, parse

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
PREPROCESSING: dict[str, dict[str, Any]] = {
    "CLIP": {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224, "resample": 3}
    | {"image_mean": OPENAI["mean"], "image_std": OPENAI["std"]},
    "Siglip": {"size": {"height": 224, "width": 224}, "do_center_crop": False, "resample": 3}
    | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "ViT": {"size": {"height": 224, "width": 224}, "do_center_crop": False, "resample": 2}
    | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}
PROCESSOR = re.compile(r"(CLIP|Siglip|ViT)(ImageProcessor|FeatureExtractor)(Fast|Pil)?")
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}

_BLOCK = (
    ("layer_norm1.", "norm1.", "ln_1."),
    ("layer_norm2.", "norm2.", "ln_2."),
    ("self_attn.in_proj.", "attn.qkv.", "attention.in_proj."),
    ("self_attn.out_proj.", "attn.proj.", "attention.out_proj."),
    ("mlp.fc1.", "mlp.fc1.", "fc1."),
    ("mlp.fc2.", "mlp.fc2.", "fc2."),
)
# Foreign and our names of the text tower's weights, and of the image tower's that CLIP and SigLIP share.
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

    A folder that also has open_clip's config belongs to transformers only if it has weights by transformers' names.
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
    """Return a nested config (`text_config` or `vision_config`) with the settings that it leaves out, checked.

    CLIP's first configs repeat the nested config as `text_config_dict`, which then counts.

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


def vision_transformer(
    name: str,
    *,
    image_size: int,
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    mlp_width: int,
    activation: str,
    norm_eps: float,
) -> dict[str, Any]:
    """Return the config of a vision transformer of timm.

    Args:
        name: timm model that has the same layers.
        image_size: side of the images, in pixels.
        patch_size: side of a patch, in pixels.
        width: width of token features.
        depth: number of blocks.
        heads: attention heads per block.
        mlp_width: width of the MLPs' hidden layer.
        activation: activation of the MLPs.
        norm_eps: epsilon of the layer norms.
    """
    return {
        "_target_": "openslip.models.timm_tower.TimmTower",
        "name": name,
        "image_size": image_size,
        "norm_eps": norm_eps,
        "arguments": {
            "patch_size": patch_size,
            "embed_dim": width,
            "depth": depth,
            "num_heads": heads,
            "mlp_ratio": mlp_ratio(width, mlp_width),
            "act_layer": activation,
        },
    }


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
    """Read the weights of a folder by our names: one weight for queries, keys and values, projections transposed."""
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
    """Join the projections to queries, keys and values of each attention layer into one."""
    joined = dict(weights)
    for name in weights:
        if ".self_attn.q_proj." in name:
            names = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
            if all(other in weights and weights[other].ndim == weights[name].ndim for other in names):
                joined[name.replace(".q_proj.", ".in_proj.")] = torch.cat([joined.pop(other) for other in names])
    return joined


def transform_in(folder: Path, image_size: int, family: str) -> EvalTransform:
    """Return the transform that `preprocessor_config.json` or `processor_config.json` describes.

    It equals transformers' image processors with the backend Pillow.

    Args:
        folder: the folder.
        image_size: side of the images that the model takes.
        family: `CLIP` or `Siglip`: the processor whose defaults apply if there is no such file.

    Raises:
        UserError: the processor is not one of those that we have, or does not give square images of this size.
    """
    if (path := file_in(folder, "preprocessor_config.json")) is not None:
        settings = read_json(path)
    elif (path := file_in(folder, "processor_config.json")) is not None:
        settings = read_json(path).get("image_processor") or {}
    else:
        path, settings = folder / "preprocessor_config.json", default_size(family, image_size)
        notice_once(f"{folder} has no preprocessor_config.json: images are prepared as {family}ImageProcessor does")
    try:
        return transform_of(settings, image_size, family)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, UserError) as error:
        raise UserError(f"{path}: {error}; load it with hf:{folder} instead") from error


def default_size(family: str, image_size: int) -> dict[str, Any]:
    """Return the processor settings that follow from the model's image size."""
    if family == "CLIP":
        return {"size": {"shortest_edge": image_size}, "crop_size": image_size}
    return {"size": {"height": image_size, "width": image_size}}


def transform_of(settings: Mapping[str, Any], image_size: int, family: str) -> EvalTransform:
    """Return the transform that the settings of an image processor describe."""
    kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or f"{family}ImageProcessor"
    if (match := PROCESSOR.fullmatch(kind)) is None:
        raise UserError(f"image processor {kind[:80]} is not one that OpenSLIP reads (CLIP, Siglip and ViT)")
    settings = PREPROCESSING[match[1]] | {key: value for key, value in settings.items() if value is not None}
    if not (
        settings.get("do_resize", True) and settings.get("do_rescale", True) and settings.get("do_normalize", True)
    ):
        raise UserError("do_resize, do_rescale or do_normalize is false; expected all three")
    if not math.isclose(settings.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise UserError(f"rescale_factor is {settings['rescale_factor']}; expected 1/255")
    if settings["resample"] not in INTERPOLATIONS:
        raise UserError(f"resample is {settings['resample']}; expected 2 (bilinear) or 3 (bicubic)")
    size, crop = settings["size"], settings["crop_size"] if settings["do_center_crop"] else None
    if isinstance(size, int):
        size = {"shortest_edge": size} if crop else {"height": size, "width": size}
    if isinstance(crop, Mapping):
        crop = crop["height"] if crop["height"] == crop["width"] else crop
    if set(size) == {"shortest_edge"} and crop == image_size <= size["shortest_edge"]:
        larger = size["shortest_edge"] if size["shortest_edge"] > image_size else None
        resize: dict[str, Any] = {"resize": "shortest", "resize_to": larger}
    elif set(size) == {"height", "width"} and size["height"] == size["width"] == image_size == (crop or image_size):
        resize = {"resize": "squash"}
    else:
        raise UserError(f"size {size} with crop {crop} does not give the model's images of {image_size} pixels")
    mean, std = ([float(value) for value in settings[key]] for key in ("image_mean", "image_std"))
    if not (len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0):
        raise UserError("image_mean and image_std: expected three finite numbers each")
    interpolation = INTERPOLATIONS[settings["resample"]]
    return EvalTransform(size=image_size, mean=mean, std=std, interpolation=interpolation, crop="floor", **resize)


def tokenizer_in(
    folder: Path, *, family: str, context_length: int, vocab_size: int, pooled: str, end: int | None = None
) -> Tokenizer:
    """Return the tokenizer of a folder, from `tokenizer.json`, or CLIP's older files, or SigLIP's `spiece.model`.

    CLIP's older files are `vocab.json` and `merges.txt`. Without any of these files, a vocabulary of CLIP's size is
    CLIP's, and any other is unknown (`BareIds`).

    Args:
        folder: the folder.
        family: `clip` or `siglip`.
        context_length: ids per row.
        vocab_size: number of rows of the token embedding.
        pooled: position that the model pools, as in `BareIds`.
        end: the id that ends a text, for `pooled="first"`.

    Raises:
        MissingPackage: the library `tokenizers` is not installed.
        UserError: a file cannot be read, or the vocabulary is larger than the model's.
    """
    definition = definition_in(folder, family)
    if definition is None and family == "siglip" and (path := file_in(folder, "spiece.model")) is not None:
        model = base64.b64encode(path.read_bytes()).decode()
        return fitting(folder, SentencePieceModel(model=model, context_length=context_length), vocab_size)
    if definition is None:
        if family == "clip" and vocab_size == CLIP_VOCABULARY:
            return ClipBpe(context_length=context_length, truncation="keep_end", special_text="token")
        return BareIds(context_length=context_length, vocab_size=vocab_size, pooled=pooled, end=end)
    settings = tokenizer_settings(folder)
    kind = str(settings.get("tokenizer_class"))
    if kind.startswith("Siglip2Tokenizer"):
        definition = lower_cased(definition)
    pad = pad_id(definition, settings.get("pad_token"), family)
    tokenizer = TokenizerJson(
        definition=definition,
        context_length=context_length,
        pad=pad,
        pooled=pooled,
        end=end,
        clean="siglip" if kind.startswith("SiglipTokenizer") else "none",
        pad_side=settings.get("padding_side") or ("left" if kind.startswith("Siglip2Tokenizer") else "right"),
    )
    return fitting(folder, tokenizer, vocab_size)


def fitting(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return a tokenizer if the model has an embedding for each of its ids.

    Raises:
        UserError: the model has fewer.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} ids, but its model only {vocab_size}: "
            "the files do not belong together"
        )
    return tokenizer


def definition_in(folder: Path, family: str) -> str | None:
    """Return the content of `tokenizer.json`, or make it of CLIP's older files; None if the folder has neither."""
    if (path := file_in(folder, "tokenizer.json")) is not None:
        return read_text(path)
    vocabulary, merges = file_in(folder, "vocab.json"), file_in(folder, "merges.txt")
    if family != "clip" or vocabulary is None or merges is None:
        return None
    lines = [line for line in read_text(merges).splitlines() if line and not line.startswith("#version")]
    return clip_definition(read_json(vocabulary), lines)


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of a tokenizer, which two files may hold."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path := file_in(folder, name)) is not None:
            settings |= read_json(path)
    return settings


def pad_id(definition: str, token: Any, family: str) -> int:
    """Return the id that pads rows: that of the stated token, or of transformers' default for the model."""
    content = token.get("content") if isinstance(token, Mapping) else token
    if content is None:
        content = "<|endoftext|>" if family == "clip" else "</s>"
    found = parse(definition).token_to_id(str(content))
    if found is None:
        raise UserError(f"its tokenizer lacks the padding token {str(content)[:80]!r}")
    return found


def lower_cased(definition: str) -> str:
    """Return a tokenizer that makes texts lower-case first, as transformers' Siglip2Tokenizer does."""
    content = json.loads(definition)
    normalizer, lower = content.get("normalizer"), {"type": "Lowercase"}
    steps: Sequence[Any] = [lower] if normalizer is None else [lower, normalizer]
    content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return json.dumps(content)


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error
