"""What the SigLIP formats share. Zhai et al. 2023, arXiv:2303.15343.

The image tower pools its patches by attention: one learned query attends to them. Its feature is not projected. The
text tower attends in both directions, and pools the last position of rows of fixed length, padding included.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

TIMM_NAME = "vit_base_patch16_siglip_224"
_QUERY_KEY_VALUE = "attn_pool.in_proj."
_POOL = "image_tower.trunk.attn_pool."


def architecture(image_tower: dict[str, Any], text_tower: dict[str, Any], embed_dim: int) -> dict[str, Any]:
    """Return the config of a SigLIP model; the loaded weights replace its initial temperature and bias."""
    return {
        "_target_": "openslip.models.dual_encoder.DualEncoder",
        "image_tower": image_tower,
        "text_tower": text_tower,
        "embed_dim": embed_dim,
        "projects_image": False,
        "projection_bias": "text",
        "logit_scale_init": 2.302585,  # ln 10, as in the paper
        "logit_bias_init": -10.0,
    }


def split_pool(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the joint projection `attn_pool.in_proj` as timm does: queries, and keys with values."""
    state = dict(weights)
    for kind in ("weight", "bias"):
        joint = state.get(f"{_QUERY_KEY_VALUE}{kind}")
        if joint is not None and joint.ndim and joint.shape[0] % 3 == 0:
            width = joint.shape[0] // 3
            state[f"{_POOL}q.{kind}"], state[f"{_POOL}kv.{kind}"] = joint.split([width, 2 * width])
            del state[f"{_QUERY_KEY_VALUE}{kind}"]
    return state
