"""A tiny dual encoder, stored as a run's checkpoint."""

from pathlib import Path
from typing import Any

import torch

from openslip.inference.architecture import build_model
from openslip.inference.files import write

ARCHITECTURE: dict[str, Any] = {
    "_target_": "openslip.models.dual_encoder.DualEncoder",
    "image_tower": {
        "_target_": "openslip.models.timm_tower.TimmTower",
        "name": "vit_small_patch16_224",
        "image_size": 16,
        "arguments": {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3},
    },
    "text_tower": {
        "_target_": "openslip.models.text_transformer.TextTransformer",
        "vocab_size": 49408,
        "context_length": 77,
        "width": 16,
        "depth": 1,
        "heads": 2,
    },
    "embed_dim": 8,
    "logit_scale_init": 2.6593,
}


def write_checkpoint(path: Path, image_size: int = 16) -> Path:
    """Write the model with optimizer state, tokenizer and transform, as training does."""
    torch.manual_seed(0)
    architecture = {**ARCHITECTURE, "image_tower": {**ARCHITECTURE["image_tower"], "image_size": image_size}}
    state = {f"model.{name}": tensor for name, tensor in build_model(architecture).state_dict().items()}
    settings = {
        "format": 1,
        "architecture": architecture,
        "tokenizer": {"context_length": 77, "truncation": "keep_end", "special_text": "plain"},
        "transform": {"size": image_size, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    }
    moments = {name: torch.ones_like(tensor) for name, tensor in state.items()}
    write(path, {"state_dict": state, "optimizer_states": [moments], "openslip": settings})
    return path
