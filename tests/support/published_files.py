"""Checkpoint files as facebookresearch/SLIP published them, of random weights."""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reference_folder import Dims
from torch import Tensor

from openslip.verify.files import RECORDINGS, read_json

DIMS = Dims(
    batch=4,
    image_size=32,
    patch=16,
    vision_width=64,
    vision_depth=1,
    vision_heads=1,
    embed_dim=20,
    context=77,
    vocab=49408,
    text_width=64,
    text_heads=1,
    text_layers=1,
    ssl_mlp=24,
    ssl_emb=8,
    ssl_temp=0.1,
    ssl_scale=1.0,
    epochs=1,
)


def training_checkpoint(state: dict[str, Tensor], arguments: Any) -> dict[str, Any]:
    """As the published code saves it: wrapped names, optimizer and scaler state, the command line."""
    some = next(iter(state.values()))
    return {
        "epoch": 25,
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer": {
            "state": {0: {"step": 5, "exp_avg": some.clone()}},
            "param_groups": [{"lr": 1e-5, "params": [0]}],
        },
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "best_acc1": np.float64(38.3),
        "args": arguments,
    }


def random_state(model: str) -> dict[str, Tensor]:
    """Weights of a published model of full size, such as `SLIP_VITB16`, by their published names."""
    torch.manual_seed(0)
    noise = torch.randn(1_000_003)  # drawing 100 million numbers would take seconds
    state = {}
    for name, shape in read_json(RECORDINGS / "official_models.json")[model]["state"].items():
        count = math.prod(shape)
        gain = 1.0 if len(shape) < 2 else shape[-1] ** -0.5
        state[name] = gain * noise.repeat(count // len(noise) + 1)[:count].view(shape)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
    if "logit_scale" in state:
        state["logit_scale"] = torch.tensor(4.6)
    return state


def write_whole(path: Path, model: str) -> None:
    """Write a checkpoint of a full-size model with both moments of AdamW for every parameter."""
    state = random_state(model)
    content = training_checkpoint(state, argparse.Namespace(model=model))
    parameters = [tensor for name, tensor in state.items() if not name.endswith(("mean", "var", "tracked"))]
    content["optimizer"]["state"] = {
        number: {"step": 5, "exp_avg": torch.zeros_like(tensor), "exp_avg_sq": torch.ones_like(tensor)}
        for number, tensor in enumerate(parameters)
    }
    torch.save(content, path)
