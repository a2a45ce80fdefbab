"""Reads training checkpoints of facebookresearch/SLIP (its CLIP, SLIP and SimCLR models): docs/NUMERICS.md#weights."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.architecture import build_model, load_weights
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices, agree
from openslip.inference.files import peek, unwrapped, unwrapped_weights
from openslip.inference.layouts.keys import Table, table, translate
from openslip.inference.layouts.openai import CLIP_VOCABULARY, LOGIT_SCALE_INIT, TEXT_TOWER
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.tokenizer import Tokenizer

T = TypeVar("T")

# Pairs of a published prefix and ours; ours starts with `model.` or `objective.`, as in our run checkpoints.
_NAMES = (
    ("visual.", "model.image_tower.trunk."),
    ("image_projection", "model.image_projection"),
    ("text_projection", "model.text_projection"),
    ("logit_scale", "model.logit_scale"),
    *((published, f"model.{ours}") for published, ours in TEXT_TOWER),
    ("image_mlp.layer1.", "objective.head.0."),
    ("image_mlp.bn1.", "objective.head.1."),
    ("image_mlp.layer2.", "objective.head.3."),
    ("image_mlp.bn2.", "objective.head.4."),
    ("image_mlp.layer3.", "objective.head.6."),
)
# The weights do not show the number of heads: the published ViT-S has 12, timm's has 6, and the shapes are equal.
PUBLISHED_IMAGE_HEADS = {"VITS16": (384, 12), "VITB16": (768, 12), "VITL16": (1024, 16)}  # width and heads
# Settings with which the published models were trained: docs/NUMERICS.md#truncation, #special-text.
PUBLISHED_TOKENIZER: dict[str, Any] = {"truncation": "drop_end", "special_text": "token"}
PUBLISHED_TRANSFORM = {"size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_HEAD_WIDTH = 64
_NO_CHOICES = Choices()
_TIMM_NAMES = {384: "vit_small_patch16_224", 768: "vit_base_patch16_224", 1024: "vit_large_patch16_224"}
QUERY_NORM = "visual.blocks.0.attn.q_norm.weight"  # LaCLIP has it: laclip.py


def detect(path: Path) -> bool:
    """Tell whether the file has the keys of the published code's models."""
    names = weight_names(path)
    return "visual.cls_token" in names and QUERY_NORM not in names


def weight_names(path: Path) -> set[str]:
    """Return the published names of the weights of a file; an empty set if it cannot be read."""
    content = peek(path)
    state = content.get("state_dict", content)
    return {unwrapped(str(name)) for name in state} if isinstance(state, Mapping) else set()


def read(path: Path, choices: Choices) -> Bundle:
    """Read a published checkpoint with its tokenizer and transform, but without the SSL head.

    Args:
        path: the checkpoint file.
        choices: numbers of heads. If the file names a published model and its image tower has the width of that model,
            `image_heads` must be the published number.

    Raises:
        UserError: the checkpoint has keys that no published model has, lacks keys, or has inconsistent shapes.
    """
    try:
        choices.check_activation("quick_gelu")  # the text tower's; the image tower is timm's, with gelu
        architecture, state = import_checkpoint(peek(path), choices)
    except (IndexError, OverflowError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"checkpoint {path}: no published model has weights of these shapes ({error})") from error
    model = build_model(architecture)
    load_weights(model, state)
    tokenizer: Tokenizer | None = None
    if text := architecture.get("text_tower"):
        context_length, vocab_size = text["context_length"], text["vocab_size"]
        if vocab_size == CLIP_VOCABULARY:
            tokenizer = ClipBpe(**PUBLISHED_TOKENIZER, context_length=context_length)
        else:
            tokenizer = BareIds(context_length=context_length, vocab_size=vocab_size, pooled="largest")
    transform = EvalTransform(**PUBLISHED_TRANSFORM | {"size": architecture["image_tower"]["image_size"]})
    return Bundle(model, tokenizer, transform, architecture, torch.device("cpu"))


def objective_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of the SSL head by our names; empty for a CLIP model."""
    published = state_dict(peek(path))
    return from_published({name: tensor for name, tensor in published.items() if name.startswith("image_mlp.")})


def import_checkpoint(
    raw: Mapping[str, Any], choices: Choices = _NO_CHOICES
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a published checkpoint to our model config and our weight names, without the SSL head."""
    published = state_dict(raw)
    shapes = {name: tuple(tensor.shape) for name, tensor in published.items()}
    num_heads = image_heads(shapes, model_name(raw), choices.image_heads)
    architecture = read_architecture(shapes, image_heads=num_heads, text_heads=choices.text_heads)
    with torch.device("meta"):
        expected = to_published(build_model(architecture), nn.Module())
    published = {name: tensor for name, tensor in published.items() if not name.startswith("image_mlp.")}
    for names, fault in ((published.keys() - expected, "has unknown"), (expected.keys() - published, "lacks the")):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise UserError(f"checkpoint {fault} keys {', '.join(sorted(names)[:5])}{more}")
    for name, tensor in published.items():
        if tensor.shape != (shape := expected[name].shape):
            raise UserError(f"checkpoint key {name} has shape {[*tensor.shape]}; its other keys require {[*shape]}")
    state = {name.removeprefix("model."): tensor for name, tensor in from_published(published).items()}
    return architecture, state


def state_dict(raw: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights by their published names, without the prefixes of torch.compile and data parallelism."""
    state = raw.get("state_dict", raw)
    tensors = unwrapped_weights(state)
    if "visual.cls_token" not in tensors:
        raise UserError(
            "checkpoint has no visual.cls_token: not a published SLIP, CLIP or SimCLR training checkpoint; "
            f"its keys begin with {', '.join(map(str, list(tensors or raw)[:3]))}"
        )
    return tensors


def model_name(raw: Mapping[str, Any]) -> str | None:
    """Return the run's model name, such as `SLIP_VITB16`, from the entry `args`; None if there is no name."""
    arguments = raw.get("args")
    if isinstance(arguments, Namespace):
        arguments = vars(arguments)
    name = arguments.get("model") if isinstance(arguments, Mapping) else None
    return name if isinstance(name, str) else None


def image_heads(shapes: Mapping[str, Sequence[int]], name: str | None, chosen: int | None = None) -> int:
    """Return the image tower's number of heads.

    This is the published number if the file names a published model of this width; otherwise the chosen number, else
    the published number for this width, else one per 64 channels.
    """
    width = _shape(shapes, "visual.cls_token")[-1]
    for size, (published_width, heads) in PUBLISHED_IMAGE_HEADS.items():
        if width == published_width:
            return agree("image_heads", heads, chosen) if name and name.endswith("_" + size) else chosen or heads
    return chosen or _one_per_64(width, "visual.cls_token", "image_heads")


def read_architecture(
    shapes: Mapping[str, Sequence[int]], *, image_heads: int, text_heads: int | None
) -> dict[str, Any]:
    """Derive our model config from names and shapes of published weights: an `ImageEncoder` if there is no text tower.

    Args:
        shapes: shape of every weight by its published name, without `module.`.
        image_heads: attention heads of the image tower.
        text_heads: attention heads of the text tower; None for one head per 64 channels, as published.
    """
    width, channels, patch, _ = _shape(shapes, "visual.patch_embed.proj.weight")
    side = (_shape(shapes, "visual.pos_embed")[1] - 1) ** 0.5
    if side != int(side) or channels != 3:
        raise UserError(
            f"checkpoint keys visual.pos_embed {list(shapes['visual.pos_embed'])} and "
            f"visual.patch_embed.proj.weight {list(shapes['visual.patch_embed.proj.weight'])}: "
            "expected a square grid of RGB patches"
        )
    if width % image_heads:
        raise UserError(f"checkpoint's image tower has width {width}, which is not divisible by {image_heads} heads")
    image_tower = {
        "_target_": "openslip.models.timm_tower.TimmTower",
        "name": _TIMM_NAMES.get(width, "vit_base_patch16_224"),
        "image_size": int(side) * patch,
        "arguments": {
            "patch_size": patch,
            "embed_dim": width,
            "depth": _depth(shapes, "visual.blocks."),
            "num_heads": image_heads,
        },
    }
    if all(name.startswith(("visual.", "image_mlp.")) for name in shapes):
        return {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": image_tower}
    vocab_size, text_width = _shape(shapes, "token_embedding.weight")
    return {
        "_target_": "openslip.models.dual_encoder.DualEncoder",
        "image_tower": image_tower,
        "text_tower": {
            "_target_": "openslip.models.text_transformer.TextTransformer",
            "vocab_size": vocab_size,
            "context_length": _shape(shapes, "positional_embedding")[0],
            "width": text_width,
            "depth": _depth(shapes, "transformer.resblocks."),
            "heads": text_heads or _one_per_64(text_width, "token_embedding.weight", "text_heads"),
        },
        "embed_dim": _shape(shapes, "image_projection")[1],
        "logit_scale_init": LOGIT_SCALE_INIT,
    }


def from_published(state: Mapping[str, T]) -> dict[str, T]:
    """Rename published keys to ours, which start with `model.` or `objective.` as in our run checkpoints."""
    return {_known(name, TO_OURS): value for name, value in state.items()}


def to_published(model: nn.Module, objective: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers of a model and its objective by their published names, without copying them.

    Parameters are returned as parameters, so that their gradients can be read.
    """
    named: dict[str, Tensor] = {}
    for prefix, module in (("model", model), ("objective", objective)):
        persistent = module.state_dict(keep_vars=True)
        named |= {f"{prefix}.{name}": tensor for name, tensor in persistent.items()}
    return {_known(name, TO_PUBLISHED): tensor for name, tensor in named.items()}


def _known(name: str, names: Table) -> str:
    if (new := translate(name, names)) is None:
        raise KeyError(name)
    return new


TO_OURS = table(_NAMES)
TO_PUBLISHED = table((ours, published) for published, ours in _NAMES)


def _shape(shapes: Mapping[str, Sequence[int]], name: str) -> Sequence[int]:
    if name not in shapes:
        raise UserError(f"checkpoint lacks the keys {name}")
    return shapes[name]


def _depth(shapes: Mapping[str, Sequence[int]], prefix: str) -> int:
    numbers = [name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)]
    depth = max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1
    if depth > len(numbers):
        raise UserError(
            f"checkpoint has a key {prefix}{depth - 1} but only {len(numbers)} such keys: blocks are missing"
        )
    return depth


def _one_per_64(width: int, key: str, option: str) -> int:
    if width % _HEAD_WIDTH:
        raise UserError(
            f"checkpoint key {key} has width {width}: the number of attention heads cannot be derived from it; "
            f"expected a multiple of {_HEAD_WIDTH}; give --{option.replace('_', '-')}"
        )
    return width // _HEAD_WIDTH
