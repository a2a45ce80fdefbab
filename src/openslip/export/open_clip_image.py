"""Image towers in open_clip's form: its own ViT, ResNet and pooling of CoCa, or a trunk that timm builds by name.

Which of them a tower is follows from its layers: the tower that open_clip would build is built without weights, and
compared with ours.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from openslip.errors import UserError
from openslip.export.networks import differences
from openslip.export.structure import norm_eps
from openslip.export.towers import other_heads
from openslip.inference.layouts import coca, openai
from openslip.inference.layouts.keys import rename, table
from openslip.inference.stated import activations
from openslip.models.attentional_pooling import AttentionalPooling
from openslip.models.clip_resnet import ClipResNet
from openslip.models.dual_encoder import DualEncoder
from openslip.models.timm_tower import TimmTower

TRUNK = "image_tower.trunk."
_NATIVE = table((ours, theirs) for theirs, ours in (*openai.VIT, *openai.RESNET))
_POOLING = table((ours, theirs) for theirs, ours in coca.NAMES if ours.startswith("image_tower."))
SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1152: "so400m", 1280: "huge"}  # timm's, by width
SHOWN = 2  # differences that an error shows


class ImagePart(NamedTuple):
    """`vision_cfg` and the weights by open_clip's names; `activation` is None if `quick_gelu` has no effect on it."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    activation: str | None = None
    is_native: bool = True


def image_part(model: DualEncoder, image_size: int, text_activation: str) -> ImagePart:
    """Return the image tower and its projection in open_clip's form.

    Args:
        model: model with two towers.
        image_size: side of the images in pixels.
        text_activation: activation of the text tower; open_clip has one switch `quick_gelu` for both towers.

    Raises:
        UserError: open_clip has no such tower. The error names the forms that can express it.
    """
    state = {name: weight for name, weight in model.state_dict().items() if name.startswith("image_")}
    tower = model.image_tower
    if isinstance(tower, ClipResNet):
        if model.image_projection is not None:
            raise refusal(["image_projection (there none after a ResNet)"], model)
        return ImagePart(resnet(tower), rename(state, _NATIVE))
    named: ImagePart | None = None
    if isinstance(tower, AttentionalPooling) and isinstance(tower.tower, TimmTower):
        part, reasons = pooled_vit(tower, tower.tower, model, state, image_size)
    elif isinstance(tower, TimmTower):
        part, reasons = native_vit(tower, model, state, image_size)
    else:
        raise refusal([f"{type(tower).__name__} (there no such tower)"], model)
    if part is not None and (part.activation == "quick_gelu") == (text_activation == "quick_gelu"):
        return part
    if isinstance(tower, TimmTower):
        named, other_reasons = timm_part(tower, model, state, image_size)
        has_norm = isinstance(getattr(tower.trunk, "norm_pre", None), nn.LayerNorm)
        reasons = reasons if has_norm else other_reasons
    if named is not None:
        return named
    if part is not None:
        reasons = [f"activation {part.activation} with {text_activation} in the text tower (there one for both)"]
    raise refusal(reasons, model)


def native_vit(
    tower: TimmTower, model: DualEncoder, state: Mapping[str, Tensor], image_size: int
) -> tuple[ImagePart | None, list[str]]:
    """Return the tower as open_clip's own ViT, or None and the differences."""
    if model.image_projection is None or model.image_projection_bias is not None:
        return None, ["its image projection (there one without bias)"]
    config, weights, reasons = vit(tower, state, image_size, final_norm=True)
    return (None if reasons else ImagePart(config, weights, activation_in(tower))), reasons


def pooled_vit(
    pooling: AttentionalPooling, tower: TimmTower, model: DualEncoder, state: Mapping[str, Tensor], image_size: int
) -> tuple[ImagePart | None, list[str]]:
    """Return the tower as open_clip's ViT with the pooling of CoCa, or None and the differences."""
    if model.image_projection is None or model.image_projection_bias is not None:
        return None, ["its image projection (there one without bias)"]
    trunk = {name.replace("image_tower.tower.", "image_tower.", 1): weight for name, weight in state.items()}
    config, weights, reasons = vit(tower, rename(trunk, _POOLING), image_size, final_norm=False)
    if {*norm_eps(pooling)} != {*norm_eps(tower)}:
        reasons = [*reasons, f"epsilons {sorted({*norm_eps(pooling)})} (there one)"]
    if pooling.width != model_width(model):
        reasons = [*reasons, f"queries of width {pooling.width} (there {model_width(model)}, that of the joint space)"]
    if reasons:
        return None, reasons
    config |= {
        "attentional_pool": True,
        "attn_pooler_queries": len(pooling.queries),
        "attn_pooler_heads": pooling.heads,
    }
    joined = join_projections(weights, is_one=tower.token_width == pooling.width)
    return ImagePart(config, joined, activation_in(tower), is_native=False), []


def vit(
    tower: TimmTower, state: Mapping[str, Tensor], image_size: int, *, final_norm: bool
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return `vision_cfg`, weights and differences of a trunk from the ViT that open_clip's names describe."""
    trunk: Any = tower.trunk
    activation = activation_in(tower)
    weights = rename(state, _NATIVE)
    epsilons = {*norm_eps(trunk)}
    if not openai.has_vit(weights) or activation is None or len(epsilons) != 1:
        return {}, {}, [f"{type(trunk).__name__} with epsilons {sorted(epsilons)} and {activation} (there a ViT)"]
    for name, start in (("visual.class_embedding", (0, 0)), ("visual.positional_embedding", (0,))):
        weights[name] = weights[name][start]
    heads, eps = trunk.blocks[0].attn.num_heads, epsilons.pop()
    try:
        described = openai.image_tower(weights, activation=activation, heads=heads)
    except UserError as error:
        return {}, {}, [str(error)]
    arguments = described["arguments"] | ({} if final_norm else {"final_norm": False})
    with torch.device("meta"):
        built = TimmTower(name=described["name"], image_size=image_size, arguments=arguments, norm_eps=eps)
    config = {
        "layers": arguments["depth"],
        "width": arguments["embed_dim"],
        "head_width": arguments["embed_dim"] // heads,
        "mlp_ratio": arguments["mlp_ratio"],
        "patch_size": arguments["patch_size"],
        "image_size": image_size,
        "pool_type": "tok",
        "no_ln_pre": False,
        "act_kwargs": activation_arguments(activation),
        "norm_kwargs": {"eps": eps},
    }
    return config, weights, differences(trunk, built.trunk)


def resnet(tower: ClipResNet) -> dict[str, Any]:
    """Return `vision_cfg` of CLIP's ResNet."""
    return {
        "layers": [len(stage) for stage in tower.stages],  # pyright: ignore[reportArgumentType]
        "width": tower.conv3.out_channels,
        "head_width": tower.pool.width // tower.pool.heads,
        "image_size": tower.input_size,
    }


def timm_part(
    tower: TimmTower, model: DualEncoder, state: Mapping[str, Tensor], image_size: int
) -> tuple[ImagePart | None, list[str]]:
    """Return the tower as a trunk that open_clip builds by timm's name, or None and the fewest differences.

    open_clip passes no arguments to timm, so the trunk must be what a name alone stands for.
    """
    from open_clip.timm_model import TimmModel  # noqa: PLC0415  # slow to import

    fewest: list[str] | None = None
    projection, bias = model.image_projection, model.image_projection_bias is not None
    for name, pool in named_trunks(tower.trunk, image_size):
        config: dict[str, Any] = {
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": pool,
            "timm_proj": "none" if projection is None else "linear",
            "timm_proj_bias": bias,
            "image_size": image_size,
        }
        if projection is None and not pool:
            continue  # timm would not pool at all
        with torch.device("meta"):
            try:
                built = TimmModel(
                    name, model_width(model), image_size, pool=pool, proj=config["timm_proj"], proj_bias=bias
                )
            except (AssertionError, RuntimeError, TypeError, ValueError):  # timm raises them for a pooling it lacks
                continue
        reasons = differences(tower.trunk, built.trunk)
        if not reasons:
            weights = {name.replace(TRUNK, "visual.trunk.", 1): w for name, w in state.items() if TRUNK in name}
            if projection is not None:
                weights["visual.head.proj.weight"] = projection.detach().T
            if bias:
                weights["visual.head.proj.bias"] = state["image_projection_bias"]
            return ImagePart(config, weights, is_native=False), []
        if fewest is None or len(reasons) + 1 < len(fewest):
            fewest = [f"timm's {name}, which open_clip takes by name, without arguments", *reasons]
    return None, fewest or [f"{type(tower.trunk).__name__} (there no such name)"]


def named_trunks(trunk: Any, image_size: int) -> Iterator[tuple[str, str]]:
    """Yield names of timm's models and poolings that could be this trunk, its own name first."""
    own = trunk.pretrained_cfg["architecture"]
    if not isinstance(trunk, VisionTransformer):
        yield from ((own, pool) for pool in ("", "avg"))
        return
    patch, _ = trunk.patch_embed.patch_size
    family = "siglip" if trunk.attn_pool is not None else "clip" if isinstance(trunk.norm_pre, nn.LayerNorm) else ""
    others = timm.list_models(f"vit_{SIZES.get(trunk.embed_dim, '')}_patch{patch}_*{image_size}")
    kin = (name for name in others if family in name and ("clip" in name) == ("clip" in family))
    yield from ((name, trunk.global_pool) for name in dict.fromkeys([own, *kin]))


def activation_in(tower: TimmTower) -> str | None:
    """Return the activation of a vision transformer's MLPs; None if there is none, or if it differs between layers."""
    known = {*activations(tower)}
    return known.pop() if len(known) == 1 else None


def activation_arguments(activation: str) -> dict[str, str] | None:
    """Return `act_kwargs` of an activation; None for QuickGELU, which takes no arguments."""
    return {"gelu": {"approximate": "none"}, "gelu_tanh": {"approximate": "tanh"}}.get(activation)


def join_projections(weights: Mapping[str, Tensor], *, is_one: bool) -> dict[str, Tensor]:
    """Join the projections of CoCa's pooling as torch's multi-head attention stores them.

    Args:
        weights: weights with `q_proj`, `k_proj` and `v_proj`.
        is_one: whether queries and keys have the same width, so that their weights are one matrix.
    """
    joined = dict(weights)
    for kind in ("weight", "bias"):
        names = [f"{coca.POOL}attn.{letter}_proj.{kind}" for letter in "qkv"]
        parts = [joined.pop(name) for name in names]
        if is_one or kind == "bias":
            joined[f"{coca.POOL}attn.in_proj_{kind}"] = torch.cat(parts)
        else:
            joined |= {name.replace(".weight", "_weight"): part for name, part in zip(names, parts, strict=True)}
    return joined


def model_width(model: DualEncoder) -> int:
    """Return the dimension of the joint space."""
    return model.image_tower.width if model.image_projection is None else model.image_projection.shape[1]


def refusal(reasons: list[str], model: DualEncoder) -> UserError:
    """Return the error for a tower that open_clip cannot build; the first reason may name what comes closest."""
    more = f" and {len(reasons) - SHOWN} more" * (len(reasons) > SHOWN)
    other = other_heads(model)
    form = (
        f"--to onnx (--to huggingface cannot hold {other} with this tower)"
        if other
        else "--to huggingface or --to onnx"
    )
    return UserError(
        f"--to open_clip: it cannot build this image tower: {'; '.join(reasons[:SHOWN])}{more}; use {form}"
    )
