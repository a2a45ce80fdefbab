"""Reads checkpoints of Sense-GVT/DeCLIP: its CLIP, SLIP, FILIP, DeCLIP and DeFILIP with a text transformer.

The image tower has OpenAI's names. The text tower is under `encode_text.` (or `text_encoder.`), and its projection is a
linear layer with bias. A mask token comes before the start and end tokens, whose ids are one higher than CLIP's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openslip.data.image.eval_transform import EvalTransform
from openslip.inference.architecture import build_limited
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices, heads
from openslip.inference.files import distinct, peek, unwrapped_weights
from openslip.inference.layouts import openai, transforms
from openslip.inference.layouts.keys import fit
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.tokenizer import Tokenizer

TEXT = ("encode_text.", "text_encoder.")
# Heads, queues and teachers of training, which encode neither images nor texts for zero-shot use.
TRAINING = (
    *("projector.", "predictor.", "text_label_predictor.", "nn_replacer_img.", "nn_replacer_text.", "image_mapping."),
    *("text_mapping.", "projector_text.", "predictor_text.", "logit_scale_dense"),
)
RESIZED = 256  # pixels of the shorter side before the centre crop
IMAGE_SIZE = 224


def detect(path: Path) -> bool:
    """Tell whether the file has an image tower with OpenAI's names and a text tower under DeCLIP's prefix."""
    names = _weights(path)
    return "visual.conv1.weight" in names and any(f"{prefix}token_embedding.weight" in names for prefix in TEXT)


def read(path: Path, choices: Choices) -> Bundle:
    """Read a model of DeCLIP's repository without the heads of training.

    Args:
        path: the checkpoint file.
        choices: numbers of heads, for a model whose heads are not 64 wide.

    Raises:
        UserError: weights are missing, unexpected or of other shapes, or two weights have the same name.
    """
    named = []
    for name, weight in _weights(path).items():
        prefix = next((prefix for prefix in TEXT if name.startswith(prefix)), "")
        if not name.startswith(TRAINING):
            named.append((name.removeprefix(prefix), weight))
    weights = distinct(named)
    activation = choices.check_activation("quick_gelu")
    image_heads = heads(path, "image_heads", openai.image_width(weights), choices.image_heads)
    image = openai.image_tower(weights, activation=activation, heads=image_heads)
    text_heads = heads(path, "text_heads", openai.text_width(weights), choices.text_heads)
    text = openai.text_tower(weights, activation=activation, heads=text_heads)
    state = openai.convert(weights)
    architecture = openai.dual_encoder(image, text, state)
    model = build_limited(state, architecture)
    fit(model, state, path)
    return Bundle(model, tokenizer(text), transform(image["image_size"]), architecture, torch.device("cpu"))


def tokenizer(text: Mapping[str, Any]) -> Tokenizer:
    """Return CLIP's tokenizer with a mask token, if the text tower has an embedding for each of its ids."""
    context_length, vocab_size = text["context_length"], text["vocab_size"]
    if vocab_size == openai.CLIP_VOCABULARY + 1:
        return ClipBpe(context_length=context_length, truncation="keep_end", special_text="token", mask_token=True)
    return BareIds(context_length=context_length, vocab_size=vocab_size, pooled="largest")


def transform(size: int) -> EvalTransform:
    """Return the repository's evaluation transform: resize to 256, crop 224, for other sizes in proportion."""
    resized = size * RESIZED // IMAGE_SIZE
    return EvalTransform(size=size, **transforms.IMAGENET, resize_to=resized, **transforms.AS_PUBLISHED)


def _weights(path: Path) -> dict[str, Tensor]:
    content = peek(path)
    return unwrapped_weights(content.get("model", content.get("state_dict", content)))
