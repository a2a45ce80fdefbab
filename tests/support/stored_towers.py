"""Small checkpoints that a tower can start from."""

from pathlib import Path
from typing import Any

import torch
from trainings import SMALL

from openslip.config.build import settled
from openslip.config.compose import compose_config
from openslip.inference.architecture import build_model
from openslip.inference.files import write

TRANSFORM = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
TINY = [word for word in SMALL if word.startswith("model.")]


def parts_config(*words: str) -> dict[str, Any]:
    return settled(compose_config("train", [*TINY, *words])[0])  # a checkpoint holds numbers, never `auto`


def write_checkpoint(path: Path, architecture: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A stripped checkpoint of a model with weights of its own, which are returned."""
    torch.manual_seed(7)
    weights = build_model(architecture).state_dict()
    settings = {"format": 1, "architecture": architecture, "tokenizer": None}
    state = {f"model.{name}": tensor for name, tensor in weights.items()}
    write(path, {"openslip": settings | {"transform": TRANSFORM}, "state_dict": state})
    return weights
