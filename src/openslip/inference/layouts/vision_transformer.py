"""The config of a vision transformer of timm, for formats that state its sizes."""

from typing import Any

from openslip.inference.layouts.openai import mlp_ratio


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
