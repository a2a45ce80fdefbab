"""Folders of transformers with a CLIPModel or a MetaClip2Model, which has the same layers and names."""

from pathlib import Path
from typing import Any

from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices
from openslip.inference.layouts import huggingface, huggingface_images, huggingface_tokenizer
from openslip.inference.layouts.keys import table

MODEL_TYPES = ("clip", "metaclip_2")
OLD_END = 2  # wrong in CLIP's first configs; transformers then pools the largest id
TIMM_NAME = "vit_base_patch16_clip_224"  # with a norm before the blocks, and patches without a bias
NAMES = table((*huggingface.TEXT_NAMES, *huggingface.CLIP_IMAGE_NAMES))


def detect(path: Path) -> bool:
    """Tell whether the folder's `config.json` describes a CLIPModel or MetaClip2Model."""
    return huggingface.describes(path, MODEL_TYPES)


def read(path: Path, choices: Choices) -> Bundle:
    """Read the model of a folder with its tokenizer and transform.

    Args:
        path: the folder.
        choices: must agree with the config, which answers everything.

    Raises:
        UserError: a file is missing or damaged, the config has an unknown setting, or the weights do not fit it.
    """
    config = huggingface.config_in(path)
    text = huggingface.part(config, "text_config", huggingface.TEXT["clip"])
    vision = huggingface.part(config, "vision_config", huggingface.VISION["clip"])
    architecture = {
        "_target_": "openslip.models.dual_encoder.DualEncoder",
        "image_tower": huggingface.image_tower(TIMM_NAME, vision, choices),
        "text_tower": huggingface.text_tower(text, choices, causal=True),
        **joint_space(config),
    }
    return huggingface.assemble(
        path,
        architecture,
        huggingface.read_weights(path, NAMES),
        huggingface_tokenizer.tokenizer_in(path, family="clip", **ids_of(text, old_end=config["model_type"] == "clip")),
        huggingface_images.transform_in(path, vision["image_size"], "CLIP"),
    )


def joint_space(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the projections and the initial temperature, which the loaded weights replace."""
    defaults = {"projection_dim": 512, "logit_scale_init_value": 2.6592}
    settings = huggingface.part({"config": config}, "config", defaults)
    return {"embed_dim": settings["projection_dim"], "logit_scale_init": settings["logit_scale_init_value"]}


def ids_of(text: dict[str, Any], *, old_end: bool) -> dict[str, Any]:
    """Return how the text tower reads ids: the feature of a text is at its largest id, or at its first end token.

    Args:
        text: the text config.
        old_end: whether `eos_token_id: 2` in the config means that the position of the largest id is pooled.
    """
    largest = old_end and text["eos_token_id"] == OLD_END
    return {
        "context_length": text["max_position_embeddings"],
        "vocab_size": text["vocab_size"],
        "pooled": "largest" if largest else "first",
        "end": None if largest else text["eos_token_id"],
    }
