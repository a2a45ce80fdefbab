"""FILIP's loss on what the published DeCLIP implementation was given; it runs on any number of ranks."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from small_models import small_model
from torch import Tensor

from openslip.distributed import all_sum, rank, world_size
from openslip.objectives.filip import FILIP
from openslip.verify.splits import in_tiles

INPUTS = {"image": "image_1", "text": "text", "image_dense": "image_dense_1", "words": "words"}
WEIGHTS = ("image_mapping.weight", "image_mapping.bias", "text_mapping.weight", "text_mapping.bias")


def arrays_of(path: Path) -> dict[str, Tensor]:
    with np.load(path) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored}


def recorded_step(path: Path, top_tokens: int | None = 16, tile: int | None = 40) -> dict[str, Tensor]:
    """Loss and gradients of this rank by their recorded names: divided by the ranks, weights' gradients summed."""
    stored = arrays_of(path)
    given = {
        name: stored[f"step0/in/{source}"].chunk(world_size())[rank()].clone().requires_grad_()
        for name, source in INPUTS.items()
    }
    weights = {name: stored[f"weights/{name}"].clone().requires_grad_() for name in WEIGHTS}
    model, _ = small_model("filip")
    objective = FILIP(
        token_scale=1.0,
        clip_scale=0.0,
        top_tokens=top_tokens,
        count_padding=True,
        gather_with_grad=True,
        max_logit_scale=4.6052,
    )
    scales = {"logit_scale": "logit_scale", "logit_scale_dense": "token_logit_scale"}
    for theirs, ours in scales.items():
        model.get_parameter(ours).data.fill_(float(stored[f"weights/{theirs}"]))
    patches = F.linear(given["image_dense"], weights["image_mapping.weight"], weights["image_mapping.bias"])
    words = F.linear(given["words"], weights["text_mapping.weight"], weights["text_mapping.bias"])
    features = {"image": given["image"], "text": given["text"], "image_tokens": patches, "text_tokens": words}
    masks = {f"{name}_mask": torch.ones(features[f"{name}_tokens"].shape[:2]).bool() for name in ("image", "text")}
    with in_tiles(tile):
        terms = objective.terms(model, features | masks)
        (terms["loss"] / world_size()).backward()
    found = {
        f"step0/loss/rank{rank()}/losses": terms["loss"] / world_size(),
        f"step0/loss/rank{rank()}/clip_dense_losses": terms["token_loss"] / world_size(),
        f"step0/loss/rank{rank()}/top1": terms["token_acc"] / world_size(),
    }
    found |= {f"step0/grad/rank{rank()}/{INPUTS[name]}": tensor.grad for name, tensor in given.items()}
    summed = weights | {theirs: model.get_parameter(ours) for theirs, ours in scales.items()}
    found |= {
        f"step0/grad/weights/{name}": all_sum(weight.grad) for name, weight in summed.items() if weight.grad is not None
    }
    return {name: tensor.detach().clone() for name, tensor in found.items() if tensor is not None}
