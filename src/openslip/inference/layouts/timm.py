"""What a `config.json` of timm says: the model's name, its arguments, and how images are prepared."""

import math
from collections.abc import Mapping
from typing import Any

import timm

from openslip.data.image.eval_transform import INTERPOLATIONS, EvalTransform
from openslip.errors import UserError

RESIZES = {"center": "shortest", "squash": "squash"}


def image_tower(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of the tower that a `config.json` of timm describes, without its classifier.

    Args:
        config: the content, with `architecture`, and usually `pretrained_cfg` and `model_args`.

    Raises:
        UserError: timm has no such model, its images are not square, or a setting has a wrong type.
    """
    name, arguments = config.get("architecture"), config.get("model_args") or {}
    settings = preprocessing(config.get("pretrained_cfg") or {}, name)
    if not isinstance(arguments, Mapping):
        raise UserError(f"config.json: model_args is a {type(arguments).__name__}; expected an object")
    arguments = dict(arguments)
    size = arguments.pop("img_size", None) or list(settings["input_size"])[1:]
    size = size if isinstance(size, list | tuple) else [size, size]
    if len(size) != 2 or size[0] != size[1] or not isinstance(size[0], int) or size[0] < 1:
        raise UserError(f"config.json: images of size {size}; expected a square")
    arguments.pop("num_classes", None)  # a tower has no classifier
    if config.get("global_pool") is not None:
        arguments.setdefault("global_pool", config["global_pool"])
    return {
        "_target_": "openslip.models.timm_tower.TimmTower",
        "name": name,
        "image_size": size[0],
        "arguments": arguments,
    }


def transform(pretrained: Mapping[str, Any], tower: Mapping[str, Any]) -> EvalTransform:
    """Return the evaluation transform of timm for these settings.

    Args:
        pretrained: `pretrained_cfg` of the config; timm's own settings of the model complete it.
        tower: config of the tower.

    Raises:
        UserError: a setting is not one that we have.
    """
    settings = preprocessing(pretrained, tower["name"])
    size, mode = tower["image_size"], settings["crop_mode"] or "center"
    if settings["interpolation"] not in [*INTERPOLATIONS] or mode not in [*RESIZES]:  # values may be unhashable
        raise UserError(
            f"config.json: interpolation={settings['interpolation']}, crop_mode={mode}: expected "
            f"{' or '.join(INTERPOLATIONS)}, and {' or '.join(RESIZES)}"
        )
    try:
        mean, std = ([float(value) for value in settings[key]] for key in ("mean", "std"))
        if not (len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0):
            raise ValueError("expected three finite numbers each")
        resized = math.floor(size / float(settings["crop_pct"] or 1))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"config.json: mean, std or crop_pct: {error}") from error
    if mode == "squash" and resized != size:
        raise UserError(f"config.json: crop_pct={settings['crop_pct']} with crop_mode=squash; expected 1")
    return EvalTransform(
        size=size,
        mean=mean,
        std=std,
        interpolation=settings["interpolation"],
        resize=RESIZES[mode],
        resize_to=resized if resized != size else None,
        transparency="ignore",
    )


def preprocessing(pretrained: Any, name: Any) -> dict[str, Any]:
    """Return the given preprocessing settings, completed by those of the model's default weights in timm.

    Raises:
        UserError: timm has no such model, or the settings are no object.
    """
    if not isinstance(name, str) or not timm.is_model(name):
        raise UserError(
            f"config.json: architecture {str(name)[:80]!r} is not a model of this timm: pip install -U timm"
        )
    if not isinstance(pretrained, Mapping):
        raise UserError(f"config.json: pretrained_cfg is a {type(pretrained).__name__}; expected an object")
    known = timm.get_pretrained_cfg(name)
    return ({} if known is None else known.to_dict()) | dict(pretrained)
