"""CoCa in open_clip's layout: the towers of the contrastive part; the decoder of captions is left out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from openslip.errors import UserError
from openslip.inference.layouts import open_clip_config as configs
from openslip.inference.layouts import openai
from openslip.inference.layouts.keys import rename, shape, table

DECODER = "text_decoder."
POOL = "visual.attn_pool."
NAMES = (
    ("cls_emb", "text_tower.class_embedding"),
    (f"{POOL}query", "image_tower.queries"),
    (f"{POOL}ln_q.", "image_tower.norm_queries."),
    (f"{POOL}ln_k.", "image_tower.norm_tokens."),
    (f"{POOL}attn.q_proj.", "image_tower.q_proj."),
    (f"{POOL}attn.k_proj.", "image_tower.k_proj."),
    (f"{POOL}attn.v_proj.", "image_tower.v_proj."),
    (f"{POOL}attn.out_proj.", "image_tower.out_proj."),
    ("visual.ln_post.", "image_tower.norm."),
)
_TABLE = table(NAMES)


def convert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the decoder's weights, and rename the others to ours; unknown weights keep their names."""
    split: dict[str, Tensor] = {}
    for name, weight in weights.items():
        kind = name.removeprefix(f"{POOL}attn.in_proj_")
        if name.startswith(DECODER):
            continue
        if kind in ("weight", "bias") and weight.ndim and weight.shape[0] % 3 == 0:  # queries, keys and values
            parts = zip("qkv", weight.chunk(3), strict=True)
            split |= {f"{POOL}attn.{part}_proj.{kind}": chunk for part, chunk in parts}
        elif name.startswith(f"{POOL}attn.") and name.endswith("_proj_weight"):  # of MultiheadAttention with kdim
            split[name.removesuffix("_weight") + ".weight"] = weight
        else:
            split[name] = weight
    state = openai.convert(rename(split, _TABLE))
    trunk = "image_tower.trunk."
    return {name.replace(trunk, "image_tower.tower.trunk.", 1): weight for name, weight in state.items()}


def towers(
    image: dict[str, Any], text: Mapping[str, Any], weights: Mapping[str, Tensor], part: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Return the configs of both towers and the weights by our names.

    Args:
        image: config of the vision transformer without its pooling.
        text: config of the text transformer without its class embedding.
        weights: weights by open_clip's names.
        part: `vision_cfg`.
        path: the config file, for errors.

    Raises:
        UserError: the config contradicts the weights, has the pooling that open_clip calls untested, or has a text
            tower without a causal mask.
    """
    if part["attentional_pool"] is not True or part["timm_model_name"] or not openai.has_vit(weights):
        raise UserError(
            f"{path}: attentional_pool={str(part['attentional_pool'])[:80]}: of CoCa, only a vision transformer with "
            "attentional_pool=true and a text tower with embed_cls=true are implemented"
        )
    if not text["causal"]:
        raise UserError(f"{path}: text_cfg.no_causal_mask=True is not implemented for CoCa, whose text tower is causal")
    queries, width = shape(weights, f"{POOL}query", ndim=2)
    if configs.number(part, "attn_pooler_queries", path) != queries:
        raise UserError(f"{path}: attn_pooler_queries is {part['attn_pooler_queries']}, and the weights have {queries}")
    pooled = {
        "_target_": "openslip.models.attentional_pooling.AttentionalPooling",
        "tower": image | {"arguments": image["arguments"] | {"final_norm": False}},
        "queries": queries,
        "heads": configs.number(part, "attn_pooler_heads", path),
        "width": width,
        "norm_eps": image["norm_eps"],
    }
    kept = ("vocab_size", "context_length", "width", "depth", "heads", "activation", "norm_eps", "mlp_width")
    words = {"_target_": "openslip.models.coca_text.CocaText", **{name: text[name] for name in kept}}
    return pooled, words, convert(weights)
