"""Folders of transformers: a CLIPModel, a SiglipModel, or a VisionTextDualEncoderModel with an image tower of timm.

The model's layers decide which one. CLIPModel has CLIP's vision transformer (a norm before the blocks, patches without
a bias), SiglipModel has SigLIP's (attention pooling), and other towers of timm stay what they are, as in SLIP.
"""

import json
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.export import image_processor, structure
from openslip.export.packages import Packages
from openslip.export.read import Read
from openslip.export.tokenizer_files import write_tokenizer
from openslip.export.towers import other_heads
from openslip.export.transformers_names import CLIP, DUAL_ENCODER, SIGLIP, to_transformers
from openslip.inference.bundle import Bundle
from openslip.inference.layouts import huggingface
from openslip.inference.layouts.keys import Table
from openslip.models.dual_encoder import DualEncoder
from openslip.models.image_encoder import ImageEncoder
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe
from openslip.text.sentencepiece_model import SentencePieceModel
from openslip.text.tokenizer import Tokenizer
from openslip.text.tokenizer_json import TokenizerJson

NEEDS = Packages(("transformers", "tokenizers"), "hf")
ACTIVATIONS = {ours: theirs for theirs, ours in reversed(huggingface.ACTIVATIONS.items())}
NAMED_IDS = (("bos", "start"), ("eos", "end"), ("pad", "end"))  # transformers' names, and those of our tokenizer
LARGEST_ID = 2  # as the end token, it makes transformers pool the largest id


def transform(bundle: Bundle) -> EvalTransform:
    """Return the transform that this form defines, which rounds the position of the centre crop down."""
    return image_processor.defined(bundle.transform)


def write(bundle: Bundle, folder: Path) -> None:
    """Write config, weights, tokenizer and image processor.

    Raises:
        UserError: no class of transformers has the model's layers.
    """
    model, tokenizer = bundle.model, bundle.tokenizer
    if isinstance(model, ImageEncoder):
        refuse("a model without a text tower", "timm")
    if type(model) is not DualEncoder:
        refuse(f"a {type(model).__name__}")
    config, names = describe(model, bundle.architecture, tokenizer)
    weights = to_transformers({name: weight.cpu() for name, weight in model.state_dict().items()}, names)
    image_processor.write_image_processor(bundle.transform, folder, "huggingface")
    write_tokenizer(tokenizer, folder, "huggingface")
    (folder / "config.json").write_text(json.dumps({"dtype": "float32"} | config, indent=2) + "\n", "utf-8")
    weights = {name: weight.contiguous() for name, weight in weights.items()}  # a copy of transposed ones
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def refuse(model: str, form: str = "safetensors") -> NoReturn:
    """Raise the error of a model that no class of transformers has."""
    raise UserError(f"--to huggingface: transformers has no class for {model}; use --to {form}")


def describe(
    model: DualEncoder, architecture: dict[str, Any], tokenizer: Tokenizer | None
) -> tuple[dict[str, Any], Table]:
    """Return the `config.json` of the class that has the model's layers, and the names of its weights.

    Raises:
        UserError: no class has them.
    """
    text = structure.text_transformer(model.text_tower)
    if text is None:
        refuse(f"a {type(model.text_tower).__name__}")
    if model.token_dim is not None:
        refuse("projections of single tokens")
    if model.text_projection is None:
        refuse("a model without a text projection")
    embed_dim, texts = model.text_projection.shape[1], text_config(model.text_tower, text)
    image = structure.vision_transformer(model.image_tower, structure.SIGLIP_WEIGHTS, "map")
    if image is not None and has_siglip_heads(model, tokenizer):
        texts |= {"model_type": "siglip_text_model", "projection_size": embed_dim, "bos_token_id": None}
        texts["eos_token_id"] = None  # transformers' defaults are no ids of SigLIP's vocabulary
        images = vision_config(model.image_tower, image) | {"model_type": "siglip_vision_model"}
        return whole("siglip", "SiglipModel", texts, images), SIGLIP
    if other := other_heads(model):
        # SigLIP's layers, SiglipModel's, have been looked for above.
        only = " (only SiglipModel has it, with SigLIP's towers)" * (other == "logit_bias")
        refuse(f"these towers with {other}{only}", "onnx, or --to open_clip if it has the image tower")
    texts |= {"model_type": "clip_text_model", "projection_dim": embed_dim, **special_ids(tokenizer)}
    joint = {"projection_dim": embed_dim, "logit_scale_init_value": float(model.logit_scale.detach())}
    image = structure.vision_transformer(model.image_tower, structure.CLIP_WEIGHTS, "token")
    if image is not None:
        images = vision_config(model.image_tower, image)
        images |= {"model_type": "clip_vision_model", "projection_dim": embed_dim}
        return whole("clip", "CLIPModel", texts, images) | joint, CLIP
    images = timm_config(model.image_tower, architecture["image_tower"])
    return whole("vision-text-dual-encoder", "VisionTextDualEncoderModel", texts, images) | joint, DUAL_ENCODER


def whole(kind: str, name: str, texts: dict[str, Any], images: dict[str, Any]) -> dict[str, Any]:
    """Return the config of both towers."""
    return {"model_type": kind, "architectures": [name], "text_config": texts, "vision_config": images}


def has_siglip_heads(model: DualEncoder, tokenizer: Tokenizer | None) -> bool:
    """Whether mask, pooling, projections and logits are those of SigLIP, which reads rows of ids whole."""
    tower: Any = model.text_tower
    pooled = tokenizer.settings()["pooled"] if isinstance(tokenizer, BareIds | TokenizerJson) else None
    return (
        not tower.causal
        and tower.pooling == "last"
        and (pooled == "last" or isinstance(tokenizer, SentencePieceModel))
        and model.image_projection is None
        and model.text_projection_bias is not None
        and model.logit_bias is not None
    )


def special_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """Return the ids by which transformers finds the pooled token: the first end token, or the largest id.

    Raises:
        UserError: the model pools another token.
    """
    settings = tokenizer.settings() if isinstance(tokenizer, BareIds | TokenizerJson) else {}
    pooled, end = settings.get("pooled"), settings.get("end")
    if isinstance(tokenizer, ClipBpe):
        return {f"{name}_token_id": tokenizer.special_ids[key] for name, key in NAMED_IDS}
    if pooled == "largest":
        return {"bos_token_id": None, "eos_token_id": LARGEST_ID, "pad_token_id": None}
    if pooled == "first" and end != LARGEST_ID:
        return {"bos_token_id": None, "eos_token_id": end, "pad_token_id": None}
    refuse(f"texts whose end is found by {type(tokenizer).__name__} ({pooled} {'' if end is None else end})")


def text_config(tower: Any, text: structure.Transformer) -> dict[str, Any]:
    """Return the settings of a text tower."""
    sizes = {"vocab_size": tower.token_embedding.num_embeddings, "max_position_embeddings": tower.context_length}
    return sizes | transformer_config(text)


def vision_config(tower: Any, image: structure.Transformer) -> dict[str, Any]:
    """Return the settings of a vision transformer."""
    patches = tower.trunk.patch_embed
    sizes = {"num_channels": 3, "image_size": patches.img_size[0], "patch_size": patches.patch_size[0]}
    return sizes | transformer_config(image)


def transformer_config(transformer: structure.Transformer) -> dict[str, Any]:
    """Return the settings that text and vision transformers share."""
    return {
        "hidden_size": transformer.width,
        "intermediate_size": transformer.mlp_width,
        "num_hidden_layers": transformer.depth,
        "num_attention_heads": transformer.heads,
        "hidden_act": ACTIVATIONS[transformer.activation],
        "layer_norm_eps": transformer.norm_eps,
    }


def timm_config(tower: nn.Module, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a TimmWrapperModel.

    Raises:
        UserError: the tower is none of timm, or timm cannot build it by JSON arguments.
    """
    arguments = structure.timm_arguments(tower, config)
    if arguments is None:
        other = "open_clip" if type(tower).__name__ == "ClipResNet" else "safetensors"
        refuse(f"a {type(tower).__name__} with these layers", other)
    try:
        json.dumps(arguments)
    except TypeError:
        refuse(f"the arguments {arguments} of a tower of timm, which JSON cannot hold")
    size = config["image_size"]
    return {
        "model_type": "timm_wrapper",
        "architecture": config["name"],
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, size, size]},
        "do_pooling": True,
        "hidden_size": tower.width,
        "num_classes": 0,
        "label_names": [],
    }


def read(folder: Path, allow: Collection[str] = ()) -> Read:
    """Load the folder as transformers' users do, with the image processors that use Pillow."""
    transformers: Any = import_module("transformers")  # an extra
    model, report = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if problems := {kind: keys for kind, keys in report.items() if keys}:
        raise ValueError(f"transformers does not load all weights: {problems}")
    model.eval().requires_grad_(False)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    has_texts = (folder / "tokenizer_config.json").exists()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder) if has_texts else None
    others: dict[str, torch.Tensor] = {}  # what the tokenizer returned besides the ids, which users pass on as well

    def pixels(images: list[Image.Image]) -> np.ndarray:
        return processor(images=images, return_tensors="np")["pixel_values"]

    def ids(texts: list[str]) -> np.ndarray:
        assert tokenizer is not None
        others.update(tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt"))
        return others.pop("input_ids").numpy()

    def image_features(pixels: np.ndarray) -> np.ndarray:
        return model.get_image_features(pixel_values=torch.from_numpy(pixels)).pooler_output.numpy()

    def text_features(ids: np.ndarray) -> np.ndarray:
        given = {name: values[: len(ids)] for name, values in others.items()}
        return model.get_text_features(input_ids=torch.from_numpy(ids), **given).pooler_output.numpy()

    bias = getattr(model, "logit_bias", None)
    return Read(
        pixels=pixels,
        image_features=image_features,
        ids=ids if has_texts else None,
        text_features=text_features,
        logit_scale=float(model.logit_scale.exp()),
        logit_bias=None if bias is None else float(bias),
        double=model.double,
    )
