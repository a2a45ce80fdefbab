"""Class names, templates, and class vectors made of them. Radford et al. 2021, arXiv:2103.00020, 3.1.4."""

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from openslip.errors import UserError
from openslip.evaluation.evaluation import gather_batches, rank_batches
from openslip.models.dual_encoder import DualEncoder
from openslip.text.clip_bpe import Tokenizer, text_lengths


def encode_texts(
    model: DualEncoder, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device, batch_size: int
) -> Float[Tensor, "texts embed"]:
    """Projected text features in the order of `texts`, not normalised.

    Texts are encoded in the order of their lengths and cut to the longest of their batch, so that no padding
    is multiplied. The ranks share the work: all of them must call this.
    """
    text = tokenizer(texts)
    length = text_lengths(text)
    order = length.argsort(stable=True)
    encoded = [torch.empty(0, model.text_projection.shape[1], device=device)]
    for batch in rank_batches(len(text), batch_size):
        rows = order[batch]
        trimmed = text[rows, : int(length[rows].max())]
        encoded.append(model.encode_text(trimmed.to(device), length[rows].to(device)))
    in_length_order = gather_batches(torch.cat(encoded), len(text), batch_size)
    return in_length_order[order.argsort().to(device)]


def class_embeddings(
    model: DualEncoder,
    tokenizer: Tokenizer,
    classnames: Sequence[str],
    templates: Sequence[str],
    device: torch.device,
    batch_size: int,
) -> Float[Tensor, "classes embed"]:
    """One unit vector per class: its prompts' features normalised, averaged, and normalised again.

    Raises:
        UserError: no class, no template, or a template without `{}`.
    """
    check_prompts(classnames, templates)
    prompts = [template.replace("{}", name) for name in classnames for template in templates]
    features = F.normalize(encode_texts(model, tokenizer, prompts, device, batch_size), dim=-1)
    return F.normalize(features.view(len(classnames), len(templates), -1).mean(dim=1), dim=-1)


def check_prompts(classnames: Sequence[str], templates: Sequence[str]) -> None:
    """Refuse what no prompt can be made of.

    Raises:
        UserError: no class, no template, or a template without `{}`.
    """
    if not classnames:
        raise UserError("classnames is empty: expected the name of every class, in the order of the labels")
    if not templates:
        raise UserError("templates is empty: expected at least one, such as 'a photo of a {}.'")
    for template in templates:
        if "{}" not in template:
            raise UserError(f"template {template!r} has no {{}} for the class name: write it like 'a photo of a {{}}.'")


def imagenet_classnames() -> list[str]:
    """ImageNet-1k's names as OpenAI curated them, in label order."""
    return list(_open_clip_metadata().IMAGENET_CLASSNAMES)


def imagenet_templates(count: int) -> list[str]:
    """OpenAI's 80 ImageNet templates, the best 7 of them (published SLIP), or `a photo of a {}.` alone.

    Raises:
        UserError: another count.
    """
    if count == 80:
        return [template("{}") for template in _open_clip_metadata().OPENAI_IMAGENET_TEMPLATES]
    if count == 7:
        return [template("{}") for template in _open_clip_metadata().SIMPLE_IMAGENET_TEMPLATES]
    if count == 1:
        return ["a photo of a {}."]
    raise UserError(f"imagenet_templates count={count}: expected 80, 7 or 1")


def read_lines(path: str | Path) -> list[str]:
    """A text file of class names or templates, one a line; blank lines may only end it.

    Raises:
        UserError: the file is missing, not UTF-8 text, empty, or has a blank line between others.
    """
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): expected a text file, one name a line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}): save it as UTF-8, one name a line") from error
    lines = [line.strip() for line in content.rstrip().split("\n")]
    if lines == [""]:
        raise UserError(f"{path}: the file is empty: expected one name a line")
    if "" in lines:
        # Skipped in silence, it would either hide a lost name or shift every label behind it.
        raise UserError(f"{path}: line {lines.index('') + 1} is blank: expected one name a line")
    return lines


@cache
def _open_clip_metadata() -> ModuleType:
    # Importing open_clip itself takes seconds; this one file of it holds data only.
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise UserError("ImageNet's names come with open_clip_torch, which is missing: pip install open_clip_torch")
    path = Path(package.origin).with_name("zero_shot_metadata.py")
    spec = importlib.util.spec_from_file_location("openslip_zero_shot_metadata", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{path}: not there, but ImageNet's names are read from it: pip install -U open_clip_torch")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
