"""ImageNet's class names and prompt templates, as OpenAI curated them; the tables are part of open_clip."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

from openslip.errors import UserError


def imagenet_classnames() -> list[str]:
    """Return ImageNet-1k's class names in OpenAI's edited version, in label order."""
    return list(_open_clip_metadata().IMAGENET_CLASSNAMES)


def imagenet_templates(count: int) -> list[str]:
    """Return OpenAI's 80 ImageNet templates, the best 7 of these (as in published SLIP), or only `a photo of a {}.`.

    Args:
        count: number of templates: 80, 7 or 1.

    Raises:
        UserError: the count is not 80, 7 or 1.
    """
    if count == 80:
        return [template("{}") for template in _open_clip_metadata().OPENAI_IMAGENET_TEMPLATES]
    if count == 7:
        return [template("{}") for template in _open_clip_metadata().SIMPLE_IMAGENET_TEMPLATES]
    if count == 1:
        return ["a photo of a {}."]
    raise UserError(f"imagenet_templates count={count}: expected 80, 7 or 1")


@cache
def _open_clip_metadata() -> ModuleType:
    # Importing open_clip takes seconds. Its file below contains only data, so only this file is loaded.
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise UserError("ImageNet's names come with open_clip_torch, which is missing: pip install open_clip_torch")
    path = Path(package.origin).with_name("zero_shot_metadata.py")
    spec = importlib.util.spec_from_file_location("openslip_zero_shot_metadata", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path} is missing; ImageNet's names are read from it: pip install -U open_clip_torch")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
