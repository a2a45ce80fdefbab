"""Reads the files of openai/CLIP: TorchScript archives as published, and plain dicts of weights saved from them.

Besides the weights, both hold the scalars `input_resolution`, `context_length` and `vocab_size`. A dict is recognised
by these scalars, an archive by its members. All models of the format have QuickGELU, and one attention head per 64
channels: docs/WEIGHTS.md.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.architecture import build_limited
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices, heads
from openslip.inference.files import peek, unwrapped_weights
from openslip.inference.layouts import openai, transforms
from openslip.inference.layouts.keys import fit
from openslip.inference.torchscript import is_torchscript, read_tensors

SIZES = ("input_resolution", "context_length", "vocab_size")
# SHA-256 of the published files. It only names the file: every archive is read in the same way, and nothing is run.
PUBLISHED = {
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": "RN50",
    "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599": "RN101",
    "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd": "RN50x4",
    "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa": "RN50x16",
    "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c": "RN50x64",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L/14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L/14@336px",
}


def detect(path: Path) -> bool:
    """Tell whether the file is a TorchScript archive, or a dict with weights and OpenAI's three scalars."""
    return is_torchscript(path) or {*SIZES, "visual.conv1.weight"} <= _plain(path).keys()


def read(path: Path, choices: Choices) -> Bundle:
    """Read a model of openai/CLIP with its tokenizer and transform.

    Args:
        path: the TorchScript archive or file of `torch.save`.
        choices: numbers of heads, for a model whose heads are not 64 wide.

    Raises:
        UserError: the file is damaged or hostile, weights are missing or unexpected, or the scalars and shapes differ.
    """
    archive = is_torchscript(path)
    weights = read_tensors(path) if archive else _plain(path)
    sizes = {name: _size(weights.pop(name, None), name, path) for name in SIZES}
    activation = choices.check_activation("quick_gelu")
    image_heads = heads(path, "image_heads", openai.image_width(weights), choices.image_heads)
    image = openai.image_tower(weights, activation=activation, heads=image_heads)
    text_heads = heads(path, "text_heads", openai.text_width(weights), choices.text_heads)
    text = openai.text_tower(weights, activation=activation, heads=text_heads)
    found = {"input_resolution": image["image_size"], **{name: text[name] for name in SIZES[1:]}}
    for name, size in sizes.items():
        if size != found[name]:
            raise UserError(f"checkpoint {path}: {name} is {size}, and its weights have {found[name]}")
    state = openai.convert(weights)
    architecture = openai.dual_encoder(image, text, state)
    model = build_limited(state, architecture)
    fit(model, state, path)
    transform = EvalTransform(size=image["image_size"], **transforms.OPENAI, **transforms.AS_PUBLISHED)
    published = PUBLISHED.get(_sha256(path)) if archive else None
    provenance = {"published": f"OpenAI CLIP {published}"} if published else {}
    device = torch.device("cpu")
    return Bundle(model, openai.tokenizer(text), transform, architecture, device, provenance=provenance)


def _plain(path: Path) -> dict[str, Tensor]:
    content = peek(path)
    return unwrapped_weights(content.get("state_dict", content))


def _size(value: Any, name: str, path: Path) -> int:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(f"checkpoint {path}: no number {name} in it; expected a model of openai/CLIP")
    return int(value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
