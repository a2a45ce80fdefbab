"""Folders of transformers with a VisionTextDualEncoderModel: CLIP's text tower, and an image tower of CLIP or timm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.inference.choices import Choices, agree
from openslip.inference.formats.huggingface_clip import TIMM_NAME, ids_of, joint_space
from openslip.inference.layouts import huggingface, huggingface_images, huggingface_tokenizer, timm
from openslip.inference.layouts.folder import file_in, peek_json
from openslip.inference.layouts.keys import table

CLIP_TYPES = ("clip", "clip_vision_model")
PAIRS = (("vision_model.timm_model.", "image_tower.trunk."), *huggingface.TEXT_NAMES, *huggingface.CLIP_IMAGE_NAMES)
# Up to version 4, transformers repeated the prefix of a CLIP tower inside this model.
REPEATED = [(name.replace("_model.", "_model." + name.split(".")[0] + ".", 1), ours) for name, ours in PAIRS[1:]]
NAMES = table((*PAIRS, *REPEATED))


def detect(path: Path) -> bool:
    """Tell whether the folder's `config.json` describes a VisionTextDualEncoderModel."""
    return huggingface.describes(path, ("vision-text-dual-encoder",))


def read(path: Path, choices: Choices) -> Bundle:
    """Read the model of a folder with its tokenizer and transform.

    Args:
        path: the folder.
        choices: must agree with the config, which answers everything.

    Raises:
        UserError: the text tower is not CLIP's, the image tower is neither CLIP's nor timm's, a file is missing or
            damaged, or the weights do not fit the config.
    """
    config = huggingface.config_in(path)
    kinds = [str((config.get(name) or {}).get("model_type"))[:80] for name in ("vision_config", "text_config")]
    if kinds[0] not in (*CLIP_TYPES, "timm_wrapper") or kinds[1] not in ("clip", "clip_text_model"):
        raise UserError(
            f"{path}: towers {kinds[0]} and {kinds[1]} are not read; expected an image tower of CLIP or timm, and "
            f"CLIP's text tower: load it with hf:{path} instead"
        )
    text = huggingface.part(config, "text_config", huggingface.TEXT["clip"])
    if kinds[0] == "timm_wrapper":
        image_tower, transform = timm_tower(path, config["vision_config"], choices)
    else:
        vision = huggingface.part(config, "vision_config", huggingface.VISION["clip"])
        image_tower = huggingface.image_tower(TIMM_NAME, vision, choices)
        transform = huggingface_images.transform_in(path, vision["image_size"], "CLIP")
    architecture = {
        "_target_": "openslip.models.dual_encoder.DualEncoder",
        "image_tower": image_tower,
        "text_tower": huggingface.text_tower(text, choices, causal=True),
        **joint_space(config),
    }
    return huggingface.assemble(
        path,
        architecture,
        huggingface.read_weights(path, NAMES),
        huggingface_tokenizer.tokenizer_in(path, family="clip", **ids_of(text, old_end=True)),
        transform,
    )


def timm_tower(path: Path, vision: Mapping[str, Any], choices: Choices) -> tuple[dict[str, Any], EvalTransform]:
    """Return the config of a TimmWrapperModel as a tower, and its transform.

    Args:
        path: the folder.
        vision: the nested config.
        choices: must agree with the number of heads, if the config states it.
    """
    if not vision.get("do_pooling", True):
        raise UserError(f"{path}: its image tower returns tokens (do_pooling is false); expected one feature per image")
    tower = timm.image_tower(vision)
    stated = tower["arguments"].get("num_heads")
    if stated is not None:
        agree("image_heads", stated, choices.image_heads)
    has_processor = any(file_in(path, name) for name in ("preprocessor_config.json", "processor_config.json"))
    if has_processor and not peek_json(path, "preprocessor_config.json").get("pretrained_cfg"):
        return tower, huggingface_images.transform_in(path, tower["image_size"], "ViT")
    settings = peek_json(path, "preprocessor_config.json").get("pretrained_cfg") or vision.get("pretrained_cfg") or {}
    return tower, timm.transform(settings, tower)
