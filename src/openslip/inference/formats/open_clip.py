"""Reads models of open_clip: folders with `open_clip_config.json`, training checkpoints and bare state dicts.

MetaCLIP v1 and LaCLIP's LAION models are published as such state dicts. A state dict does not say its activation, which
is asked for: docs/WEIGHTS.md.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openslip.data.image.eval_transform import EvalTransform
from openslip.distributed import notice_once
from openslip.errors import UserError
from openslip.inference.architecture import build_limited
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices, agree, heads
from openslip.inference.files import peek, unwrapped_weights
from openslip.inference.layouts import coca, openai, timm_trunk, transforms
from openslip.inference.layouts import open_clip_config as configs
from openslip.inference.layouts.folder import file_in, read_json, weights_in
from openslip.inference.layouts.huggingface_tokenizer import definition_in, fitting, pad_id, tokenizer_settings
from openslip.inference.layouts.keys import fit, shape
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import TokenizerJson

CONFIG = "open_clip_config.json"
WEIGHTS = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
# Vocabularies of text towers with other masks and pooling start at 32000 ids (CLIPA). Smaller
# vocabularies occur only in users' own tiny models of open_clip's class CLIP, which has a causal mask and pools the
# largest id.
OTHER_VOCABULARIES = 10000
POOLED = {"argmax": "largest", "eos": "first", "last": "last"}  # open_clip's names of the pooled position, and ours


def detect(path: Path) -> bool:
    """Tell whether the folder has an `open_clip_config.json`, or the file has open_clip's names of weights."""
    if path.is_dir():
        return (path / CONFIG).is_file() or (path / CONFIG).is_symlink()
    names = _state(path).keys()
    texts = {
        "token_embedding.weight",
        "text.token_embedding.weight",
        "text.transformer.embeddings.word_embeddings.weight",
    }
    images = "visual.conv1.weight" in names or any(name.startswith("visual.trunk.") for name in names)
    return images and bool(texts & names) and "input_resolution" not in names


def read(path: Path, choices: Choices) -> Bundle:
    """Read a model of open_clip with its tokenizer and transform.

    Args:
        path: the folder, or the file of a training checkpoint or state dict.
        choices: activation and heads, which a file without config does not say.

    Raises:
        UserError: the config has a setting that is not implemented, the choice of an activation is needed, or weights
            are missing or unexpected.
    """
    return read_folder(path, choices) if path.is_dir() else read_file(path, choices)


def read_file(path: Path, choices: Choices) -> Bundle:
    """Read a training checkpoint or state dict of open_clip's class `CLIP`, with CLIP's causal text tower.

    Raises:
        UserError: the shapes do not describe the model, so a folder with its config is needed: the image tower is
            timm's, or the text tower is separate (`CustomTextCLIP`) or has another vocabulary. Or a choice is needed.
    """
    weights = _state(path)
    advice = f"put it as {WEIGHTS[0]} or {WEIGHTS[2]} in a folder with the model's {CONFIG}, and give the folder"
    if other := [name for name in weights if name.startswith(("visual.trunk.", "visual.attn_pool.", "text."))]:
        raise UserError(
            f"checkpoint {path}: the weight {other[0]} belongs to a model that its shapes do not describe; {advice}"
        )
    vocab_size = shape(weights, "token_embedding.weight", ndim=2)[0]
    if vocab_size != openai.CLIP_VOCABULARY and vocab_size >= OTHER_VOCABULARIES:
        raise UserError(
            f"checkpoint {path}: its vocabulary of {vocab_size} ids is not CLIP's, and its shapes do not tell the mask "
            f"and the pooling of its text tower; {advice}"
        )
    activation = choices.need_activation()
    known = configs.VIT_WIDTHS if openai.has_vit(weights) else configs.RESNET_WIDTHS
    image_heads = heads(path, "image_heads", openai.image_width(weights), choices.image_heads, known=known)
    image = openai.image_tower(weights, activation=activation, heads=image_heads)
    text_heads = heads(path, "text_heads", openai.text_width(weights), choices.text_heads, known=configs.TEXT_WIDTHS)
    text = openai.text_tower(weights, activation=activation, heads=text_heads)
    transform = EvalTransform(size=image["image_size"], **transforms.OPENAI, **transforms.AS_PUBLISHED)
    notice_once(
        f"{path} does not say its mean and std: images are prepared with CLIP's. If its {CONFIG} says others (some "
        "have 0.5), give a folder with both files"
    )
    state = openai.convert(weights)
    return bundle(path, openai.dual_encoder(image, text, state), state, tokenizer(None, text, {}), transform)


def read_folder(path: Path, choices: Choices) -> Bundle:
    """Read a folder with `open_clip_config.json` and weights."""
    if (file := file_in(path, CONFIG)) is None:
        raise UserError(f"{path} has no {CONFIG}")
    config = read_json(file)
    model = configs.settings(config, "model_cfg", file)
    vision, words = (configs.settings(model, name, file) for name in ("vision_cfg", "text_cfg"))
    place, weights = weights_in(path, WEIGHTS)
    weights = flat(unwrapped_weights(weights), place)
    text = text_tower(weights, words, choices, file, quick_gelu=bool(model["quick_gelu"]))
    if vision["timm_model_name"]:
        image = timm_trunk.image_tower(weights, vision, model["timm_arguments"], choices, file)
        state = timm_trunk.convert(weights)
    else:
        image = image_tower(weights, vision, choices, file, quick_gelu=bool(model["quick_gelu"]))
        state = openai.convert(weights)
    size = image["image_size"]
    if vision["attentional_pool"] or words["embed_cls"]:
        image, text, state = coca.towers(image, text, weights, vision, file)
    architecture = openai.dual_encoder(image, text, state)
    compare({"embed_dim": (configs.number(model, "embed_dim", file), architecture["embed_dim"])}, file)
    transform = configs.transform(config, size, file)
    built = bundle(place, architecture, state, tokenizer(path, text, words), transform)
    if choices.image_heads is not None and vision["timm_model_name"]:
        blocks: Any = getattr(built.model.image_tower.trunk, "blocks", [None])
        attention = getattr(blocks[0], "attn", None)
        agree("image_heads", getattr(attention, "num_heads", None), choices.image_heads)
    return built


def bundle(
    path: Path,
    architecture: dict[str, Any],
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    transform: EvalTransform,
) -> Bundle:
    """Build the model of these weights."""
    model = build_limited(state, architecture)
    fit(model, state, path)
    return Bundle(model, tokenizer, transform, architecture, torch.device("cpu"))


def flat(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the weights by the names of the class `CLIP`, whose text tower has no prefix `text.`."""
    renamed = {name.removeprefix("text."): weight for name, weight in weights.items()}
    if len(renamed) < len(weights):
        raise UserError(f"checkpoint {path}: it has weights of two text towers, with and without the prefix text.")
    return renamed


def image_tower(
    weights: Mapping[str, Tensor], part: Mapping[str, Any], choices: Choices, path: Path, *, quick_gelu: bool
) -> dict[str, Any]:
    """Return the config of the ViT or ResNet, after comparing the stated sizes with those of the weights."""
    activation = configs.activation(part, path, quick_gelu=quick_gelu)
    head_width, size = (configs.number(part, key, path) for key in ("head_width", "image_size"))
    width = openai.image_width(weights)
    number = agree("image_heads", width // head_width, choices.image_heads)
    tower = openai.image_tower(weights, activation=activation, heads=number)
    if openai.has_resnet(weights):
        stated = {"layers": part["layers"], "width": part["width"], "image_size": size}
        found = {"layers": tower["depths"], "width": tower["channels"], "image_size": tower["image_size"]}
        compare({f"vision_cfg.{key}": (stated[key], found[key]) for key in stated}, path)
        return tower
    choices.check_activation(activation)
    arguments = tower["arguments"]
    patch = configs.number(part, "patch_size", path)
    hidden = weights["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    compare(
        {
            "vision_cfg.layers": (part["layers"], arguments["depth"]),
            "vision_cfg.width": (part["width"], width),
            "vision_cfg.patch_size": (patch, arguments["patch_size"]),
            "vision_cfg.mlp_ratio": (configs.hidden_width(part, width, path), hidden),
            "vision_cfg.image_size": (size // patch, tower["image_size"] // patch),
        },
        path,
    )
    return tower | {"image_size": size, "norm_eps": configs.norm_eps(part, path)}


def text_tower(
    weights: Mapping[str, Tensor], part: Mapping[str, Any], choices: Choices, path: Path, *, quick_gelu: bool
) -> dict[str, Any]:
    """Return the config of the text transformer, after comparing the stated sizes with those of the weights."""
    if part["pool_type"] not in POOLED:
        raise UserError(f"{path}: text_cfg.pool_type={part['pool_type']} is not implemented (only {', '.join(POOLED)})")
    causal = not part["no_causal_mask"]
    if not causal and part["pool_type"] != "last":  # open_clip then attends to the padding after the pooled position
        raise UserError(f"{path}: text_cfg.no_causal_mask with pool_type={part['pool_type']} is not implemented")
    activation = choices.check_activation(configs.activation(part, path, quick_gelu=quick_gelu))
    number = agree("text_heads", configs.number(part, "heads", path), choices.text_heads)
    tower = openai.text_tower(weights, activation=activation, heads=number)
    if part["embed_cls"]:  # one more position embedding
        tower["context_length"] -= 1
    hidden = configs.hidden_width(part, tower["width"], path)
    keys = {"context_length": "context_length", "vocab_size": "vocab_size", "width": "width", "layers": "depth"}
    stated = {f"text_cfg.{theirs}": (part[theirs], tower[ours]) for theirs, ours in keys.items()}
    compare({**stated, "text_cfg.mlp_ratio": (hidden, tower["mlp_width"])}, path)
    return tower | {"causal": causal, "norm_eps": configs.norm_eps(part, path)}


def tokenizer(folder: Path | None, text: Mapping[str, Any], part: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer: CLIP's, that of the folder's `tokenizer.json`, or one that cannot encode.

    Args:
        folder: the folder; None for a file.
        text: config of the text tower.
        part: `text_cfg`; empty for a file.
    """
    sizes = {name: text[name] for name in ("context_length", "vocab_size")}
    pooled = POOLED[part.get("pool_type", "argmax")]
    end = part["eos_id"] if pooled == "first" else None
    arguments = part.get("tokenizer_kwargs") or {}
    named = part.get("hf_tokenizer_name")
    if not named and not arguments and pooled == "largest" and text["vocab_size"] == openai.CLIP_VOCABULARY:
        # In a text, open_clip writes the start and end tokens in another way than OpenAI's code.
        context_length = text["context_length"]
        return ClipBpe(context_length=context_length, truncation="keep_end", special_text="open_clip")
    definition = definition_in(folder, "open_clip") if folder is not None and named else None
    cleaning = {"whitespace": "whitespace", "lower": "whitespace_lower", "canonicalize": "canonicalize"}
    clean = arguments.get("clean", "whitespace") if isinstance(arguments, Mapping) else None
    if definition is None or folder is None or clean not in cleaning or set(arguments) - {"clean"}:
        return BareIds(**sizes, pooled=pooled, end=end)
    pad = pad_id(definition, tokenizer_settings(folder).get("pad_token"), "siglip")
    context_length = text["context_length"]
    built = TokenizerJson(
        definition=definition, context_length=context_length, pad=pad, pooled=pooled, end=end, clean=cleaning[clean]
    )
    return fitting(folder, built, text["vocab_size"])


def compare(sizes: Mapping[str, tuple[Any, Any]], path: Path) -> None:
    """Refuse a config whose sizes differ from those of the weights.

    Args:
        sizes: for each setting, the stated value and that of the weights.
        path: the config file, for the error.
    """
    for name, (stated, found) in sizes.items():
        if stated != found:
            raise UserError(f"{path}: {name} is {str(stated)[:80]}, and the weights have {found}: not the same model")


def _state(path: Path) -> dict[str, Tensor]:
    content = peek(path)
    return unwrapped_weights(content.get("state_dict", content))
