"""The layout of openai/CLIP (clip/model.py), which open_clip and others share: names of weights, and sizes by shapes.

`visual.` is a ViT or CLIP's ResNet; the text tower and `logit_scale` have no prefix. Projections are stored as
[width, embed] and used as `x @ P`, like ours.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from openslip.errors import UserError
from openslip.inference.layouts.keys import number_of, rename, shape, table
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.tokenizer import Tokenizer

CLIP_VOCABULARY = 49408  # ids of CLIP's byte pairs, with start and end
LOGIT_SCALE_INIT = 2.6593  # ln(1 / 0.07); the file's value replaces it
NORM_EPS = 1e-5

TEXT_TOWER = (
    ("token_embedding.", "text_tower.token_embedding."),
    ("positional_embedding", "text_tower.positional_embedding"),
    ("ln_final.", "text_tower.ln_final."),
    ("transformer.resblocks.{n}.ln_1.", "text_tower.blocks.{n}.ln_1."),
    ("transformer.resblocks.{n}.attn.in_proj_", "text_tower.blocks.{n}.attention.in_proj."),
    ("transformer.resblocks.{n}.attn.out_proj.", "text_tower.blocks.{n}.attention.out_proj."),
    ("transformer.resblocks.{n}.ln_2.", "text_tower.blocks.{n}.ln_2."),
    ("transformer.resblocks.{n}.mlp.c_fc.", "text_tower.blocks.{n}.fc1."),
    ("transformer.resblocks.{n}.mlp.c_proj.", "text_tower.blocks.{n}.fc2."),
)
TEXT = (
    *TEXT_TOWER,
    ("logit_scale", "logit_scale"),
    ("logit_bias", "logit_bias"),
    ("text_projection", "text_projection"),
    ("text_projection.weight", "text_projection"),
    ("text_projection.bias", "text_projection_bias"),
)
VIT = (
    ("visual.class_embedding", "image_tower.trunk.cls_token"),
    ("visual.positional_embedding", "image_tower.trunk.pos_embed"),
    ("visual.conv1.", "image_tower.trunk.patch_embed.proj."),
    ("visual.ln_pre.", "image_tower.trunk.norm_pre."),
    ("visual.ln_post.", "image_tower.trunk.norm."),
    ("visual.proj", "image_projection"),
    ("visual.transformer.resblocks.{n}.ln_1.", "image_tower.trunk.blocks.{n}.norm1."),
    ("visual.transformer.resblocks.{n}.attn.in_proj_", "image_tower.trunk.blocks.{n}.attn.qkv."),
    ("visual.transformer.resblocks.{n}.attn.out_proj.", "image_tower.trunk.blocks.{n}.attn.proj."),
    ("visual.transformer.resblocks.{n}.ln_2.", "image_tower.trunk.blocks.{n}.norm2."),
    ("visual.transformer.resblocks.{n}.mlp.c_fc.", "image_tower.trunk.blocks.{n}.mlp.fc1."),
    ("visual.transformer.resblocks.{n}.mlp.c_proj.", "image_tower.trunk.blocks.{n}.mlp.fc2."),
)
RESNET = (
    *((f"visual.{kind}{n}.", f"image_tower.{kind}{n}.") for kind in ("conv", "bn") for n in (1, 2, 3)),
    *(
        (f"visual.layer{n + 1}.{{n}}.{theirs}", f"image_tower.stages.{n}.{{n}}.{ours}")
        for n in range(4)
        for theirs, ours in (("downsample.", "shortcut."), ("", ""))
    ),
    ("visual.attnpool.", "image_tower.pool."),
)


def has_vit(weights: Mapping[str, Any]) -> bool:
    """Whether the image tower is this layout's vision transformer."""
    return "visual.conv1.weight" in weights and "visual.class_embedding" in weights


def has_resnet(weights: Mapping[str, Any]) -> bool:
    """Whether the image tower is CLIP's ResNet."""
    return "visual.conv1.weight" in weights and "visual.attnpool.positional_embedding" in weights


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape weights to ours; unknown weights keep their names."""
    names = table([*TEXT, *(VIT if has_vit(weights) else RESNET)])
    weights = dict(weights)
    if "text_projection.weight" in weights:  # a linear layer, [embed, width]
        weights["text_projection.weight"] = weights["text_projection.weight"].T
    if has_vit(weights):
        for name, ndim in (("visual.class_embedding", 1), ("visual.positional_embedding", 2)):
            shape(weights, name, ndim=ndim)
            weights[name] = weights[name].reshape(1, -1, weights[name].shape[-1])
    return scalars(rename(weights, names))


def scalars(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with `logit_scale` and `logit_bias` of shape [], which some files store with shape [1]."""
    single = {name: weights[name] for name in ("logit_scale", "logit_bias") if name in weights}
    return {**weights, **{name: value.reshape(()) for name, value in single.items() if value.numel() == 1}}


def image_width(weights: Mapping[str, Tensor]) -> int:
    """Return the width that the heads divide: that of the ViT, or the channels that the ResNet's attention pools."""
    if has_vit(weights):
        return shape(weights, "visual.class_embedding", ndim=1)[0]
    return shape(weights, "visual.attnpool.positional_embedding", ndim=2)[1]


def text_width(weights: Mapping[str, Tensor]) -> int:
    """Return the width of the text tower."""
    return shape(weights, "token_embedding.weight", ndim=2)[1]


def image_tower(weights: Mapping[str, Tensor], *, activation: str, heads: int) -> dict[str, Any]:
    """Derive the config of the image tower from the shapes of its weights.

    Args:
        weights: weights by their names in this layout.
        activation: `quick_gelu`, `gelu` or `gelu_tanh`; a ResNet always has ReLUs.
        heads: attention heads of the ViT, or of the ResNet's attention pooling.

    Raises:
        UserError: weights that tell sizes are missing, or contradict each other.
    """
    if not has_vit(weights):
        return _resnet(weights, heads)
    width, channels, patch, _ = shape(weights, "visual.conv1.weight", ndim=4)
    positions = shape(weights, "visual.positional_embedding", ndim=2)[0]
    if channels != 3:
        raise UserError(f"the weight visual.conv1.weight takes images of {channels} channels; expected 3 (RGB)")
    hidden = shape(weights, "visual.transformer.resblocks.0.mlp.c_fc.weight", ndim=2)[0]
    return {
        "_target_": "openslip.models.timm_tower.TimmTower",
        "name": "vit_base_patch16_clip_224",
        "image_size": grid(positions - 1, "visual.positional_embedding") * patch,
        "arguments": {
            "patch_size": patch,
            "embed_dim": width,
            "depth": number_of(weights, "visual.transformer.resblocks."),
            "num_heads": heads,
            "mlp_ratio": mlp_ratio(width, hidden),
            "act_layer": activation,
        },
        "norm_eps": NORM_EPS,
    }


def _resnet(weights: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
    positions = shape(weights, "visual.attnpool.positional_embedding", ndim=2)[0]
    return {
        "_target_": "openslip.models.clip_resnet.ClipResNet",
        "image_size": 32 * grid(positions - 1, "visual.attnpool.positional_embedding"),
        "depths": [number_of(weights, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
        "channels": shape(weights, "visual.layer1.0.conv1.weight", ndim=4)[0],
        "width": shape(weights, "visual.attnpool.c_proj.weight", ndim=2)[0],
        "heads": heads,
    }


def text_tower(weights: Mapping[str, Tensor], *, activation: str, heads: int) -> dict[str, Any]:
    """Derive the config of the text tower from the shapes of its weights.

    Args:
        weights: weights by their names in this layout.
        activation: `quick_gelu`, `gelu` or `gelu_tanh`.
        heads: attention heads.

    Raises:
        UserError: weights that tell sizes are missing.
    """
    vocab_size, width = shape(weights, "token_embedding.weight", ndim=2)
    hidden = shape(weights, "transformer.resblocks.0.mlp.c_fc.weight", ndim=2)[0]
    return {
        "_target_": "openslip.models.text_transformer.TextTransformer",
        "vocab_size": vocab_size,
        "context_length": shape(weights, "positional_embedding", ndim=2)[0],
        "width": width,
        "depth": number_of(weights, "transformer.resblocks."),
        "heads": heads,
        "activation": activation,
        "mlp_width": hidden,
    }


def dual_encoder(image: dict[str, Any], text: dict[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the config of the model with two towers, whose projections are those in its weights.

    Args:
        image: config of the image tower.
        text: config of the text tower.
        weights: weights by our names, as `convert` returns them.
    """
    biased = [f"{kind}_projection_bias" in weights for kind in ("image", "text")]
    return {
        "_target_": "openslip.models.dual_encoder.DualEncoder",
        "image_tower": image,
        "text_tower": text,
        "embed_dim": shape(weights, "text_projection", ndim=2)[1],
        "logit_scale_init": LOGIT_SCALE_INIT,
        "projection_bias": "text" if biased == [False, True] else biased[0],
        "projects_image": "image_projection" in weights,
        "logit_bias_init": 0.0 if "logit_bias" in weights else None,  # the file's value replaces it
    }


def tokenizer(text: Mapping[str, Any]) -> Tokenizer:
    """Return CLIP's tokenizer if the text tower has its number of ids, else one that cannot encode.

    CLIP keeps the end token of a truncated text, and takes a literal `<|endoftext|>` as the end token.
    """
    vocab_size, context_length = text["vocab_size"], text["context_length"]
    if vocab_size == CLIP_VOCABULARY:
        return ClipBpe(context_length=context_length, truncation="keep_end", special_text="token")
    return BareIds(context_length=context_length, vocab_size=vocab_size, pooled="largest")


def grid(positions: int, name: str) -> int:
    """Return the side of a square grid of this many positions.

    Raises:
        UserError: the positions are no square.
    """
    side = round(positions**0.5) if positions > 0 else 0
    if side < 1 or side**2 != positions:
        raise UserError(f"the weight {name} has {positions} positions besides the class token; expected a square")
    return side


def mlp_ratio(width: int, hidden: int) -> float:
    """Return a ratio from which timm computes this hidden width, which it rounds down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
