"""Sizes of the model that the name of a published SLIP file promises, and in which of them a file differs."""

from functools import cache

import torch
from torch import nn

from openslip.config.build import build, settled
from openslip.config.compose import compose_config
from openslip.inference.published import Published
from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.models.tower import Tower

Sizes = dict[str, int | None]
CONFIG_NAME = str.maketrans({" ": "_", "-": None, "/": None})  # ViT-B/16 is vitb16 in configs/


def other_sizes(model: nn.Module, file: Published) -> str:
    """Name the sizes in which a model differs from the published one; return an empty text if there are none."""
    actual, promised = sizes(model), published_sizes(file.model)
    return "; ".join(
        f"{name}: {actual.get(name, 'none')}, expected {promised.get(name, 'none')}"
        for name in actual | promised
        if actual.get(name) != promised.get(name)
    )


@cache
def published_sizes(name: str) -> Sizes:
    """Return the sizes of a published model, such as `SLIP ViT-B/16`, whose config is `model=slip_vitb16`."""
    config = settled(compose_config("train", [f"model={name.lower().translate(CONFIG_NAME)}"])[0])
    with torch.device("meta"):
        return sizes(build(config["model"], "model"))


def sizes(model: nn.Module) -> Sizes:
    """Return width, input size and number of weights of each tower."""
    towers: dict[str, nn.Module] = {}
    if isinstance(model, DualEncoder | ImageEncoder):
        towers["image"] = model.image_tower
    if isinstance(model, DualEncoder):
        towers["text"] = model.text_tower
    return {
        f"{name} tower, {size}": value
        for name, tower in towers.items()
        if isinstance(tower, Tower)
        for size, value in (
            ("width", tower.width),
            ("pixels" if name == "image" else "tokens", tower.input_size),
            ("weights", sum(weight.numel() for weight in tower.parameters())),
        )
    }
