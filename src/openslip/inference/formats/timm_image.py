"""Folders of timm, as its `save_for_hf` writes them: an image tower without a text tower."""

from pathlib import Path
from typing import Any

from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices
from openslip.inference.layouts import timm
from openslip.inference.layouts.folder import peek_json, weights_in
from openslip.inference.layouts.huggingface import WEIGHTS, assemble, config_in
from openslip.inference.layouts.keys import shape
from openslip.inference.stated import refuse_other

IS_PROJECTION = "classifier_is_projection"  # the key by which an export of ours says so


def detect(path: Path) -> bool:
    """Tell whether the folder's `config.json` names a model of timm."""
    config = peek_json(path, "config.json")
    return isinstance(config.get("architecture"), str) and "model_type" not in config


def read(path: Path, choices: Choices) -> Bundle:
    """Read the model of a folder with its transform.

    A classifier is left out, unless it is the image projection, which `openslip export` stores as timm's classifier.

    Args:
        path: the folder.
        choices: must agree with the model.

    Raises:
        UserError: a file is missing or damaged, this timm has no such model, the weights do not fit it, or a choice
            differs from it.
    """
    config = config_in(path)
    tower = timm.image_tower(config)
    settings = timm.preprocessing(config.get("pretrained_cfg") or {}, tower["name"])
    classifiers = settings.get("classifier") or ()
    classifiers = [classifiers] if isinstance(classifiers, str) else classifiers
    if not isinstance(classifiers, list | tuple) or not all(isinstance(name, str) for name in classifiers):
        raise UserError(f"config.json: classifier={classifiers}: expected the name of a layer, or a list of names")
    prefixes = tuple(f"{name}." for name in classifiers)
    file, stored = weights_in(path, WEIGHTS)
    weights = {f"image_tower.trunk.{name}": weight for name, weight in stored.items() if not name.startswith(prefixes)}
    architecture: dict[str, Any] = {"_target_": "openslip.models.image_encoder.ImageEncoder", "image_tower": tower}
    if config.get(IS_PROJECTION):
        layer = "".join(classifiers)  # an export names one
        embed_dim, _ = shape(stored, f"{layer}.weight", ndim=2)
        names = {f"image_projection.{kind}": f"{layer}.{kind}" for kind in ("weight", "bias")}
        weights |= {ours: stored[theirs] for ours, theirs in names.items() if theirs in stored}
        architecture |= {
            "_target_": "openslip.models.projected_image_encoder.ProjectedImageEncoder",
            "embed_dim": embed_dim,
        }
    bundle = assemble(path, architecture, (file, weights), None, timm.transform(settings, tower))
    refuse_other(choices, bundle.model)
    return bundle
