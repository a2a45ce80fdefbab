"""Folders of transformers with a SiglipModel: SigLIP, and SigLIP 2 with a fixed image size."""

from pathlib import Path

from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices
from openslip.inference.layouts import huggingface, huggingface_images, huggingface_tokenizer, siglip
from openslip.inference.layouts.keys import table

NAMES = table(
    (
        *huggingface.TEXT_NAMES,
        *huggingface.IMAGE_NAMES,
        ("text_model.head.bias", "text_projection_bias"),
        ("text_model.head.weight", "text_projection.weight"),  # transposed later
        ("vision_model.embeddings.position_embedding.weight", "image_tower.trunk.pos_embed"),
        ("vision_model.head.probe", "image_tower.trunk.attn_pool.latent"),
        ("vision_model.head.attention.in_proj_", "attn_pool.in_proj."),  # split later
        ("vision_model.head.attention.out_proj.", "image_tower.trunk.attn_pool.proj."),
        ("vision_model.head.layernorm.", "image_tower.trunk.attn_pool.norm."),
        ("vision_model.head.mlp.", "image_tower.trunk.attn_pool.mlp."),
    )
)


def detect(path: Path) -> bool:
    """Tell whether the folder's `config.json` describes a SiglipModel."""
    return huggingface.describes(path, ("siglip",))


def read(path: Path, choices: Choices) -> Bundle:
    """Read the model of a folder with its tokenizer and transform.

    Args:
        path: the folder.
        choices: must agree with the config, which answers everything.

    Raises:
        UserError: a file is missing or damaged, the config has an unknown setting, or the weights do not fit it.
    """
    config = huggingface.config_in(path)
    text = huggingface.part(config, "text_config", huggingface.TEXT["siglip"])
    vision = huggingface.part(config, "vision_config", huggingface.VISION["siglip"])
    if not vision["vision_use_head"]:
        raise UserError(f"{path}: its image tower has no pooling head (vision_use_head is false)")
    architecture = siglip.architecture(
        huggingface.image_tower(siglip.TIMM_NAME, vision, choices),
        huggingface.text_tower(text, choices, causal=False),
        vision["hidden_size"],
    )
    file, weights = huggingface.read_weights(path, NAMES)
    context, size = text["max_position_embeddings"], text["vocab_size"]
    return huggingface.assemble(
        path,
        architecture,
        (file, siglip.split_pool(weights)),
        huggingface_tokenizer.tokenizer_in(
            path, family="siglip", context_length=context, vocab_size=size, pooled="last"
        ),
        huggingface_images.transform_in(path, vision["image_size"], "Siglip"),
    )
