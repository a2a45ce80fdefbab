"""Folders of timm, as its `save_for_hf` writes them: an image tower without a text tower."""

from pathlib import Path

from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices, agree
from openslip.inference.layouts import timm
from openslip.inference.layouts.folder import peek_json, weights_in
from openslip.inference.layouts.huggingface import WEIGHTS, assemble, config_in


def detect(path: Path) -> bool:
    """Tell whether the folder's `config.json` names a model of timm."""
    config = peek_json(path, "config.json")
    return isinstance(config.get("architecture"), str) and "model_type" not in config


def read(path: Path, choices: Choices) -> Bundle:
    """Read the model of a folder with its transform, without its classifier.

    Args:
        path: the folder.
        choices: must agree with the number of heads, if the config states it.

    Raises:
        UserError: a file is missing or damaged, this timm has no such model, or the weights do not fit it.
    """
    config = config_in(path)
    tower = timm.image_tower(config)
    if "num_heads" in tower["arguments"]:
        agree("image_heads", tower["arguments"]["num_heads"], choices.image_heads)
    settings = timm.preprocessing(config.get("pretrained_cfg") or {}, tower["name"])
    classifiers = settings.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([classifiers] if isinstance(classifiers, str) else classifiers))
    file, weights = weights_in(path, WEIGHTS)
    weights = {f"image_tower.trunk.{name}": weight for name, weight in weights.items() if not name.startswith(prefixes)}
    architecture = {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": tower}
    return assemble(path, architecture, (file, weights), None, timm.transform(settings, tower))
