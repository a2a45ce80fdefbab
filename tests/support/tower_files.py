"""Writes a folder of tiny checkpoints of other libraries with their outputs, of other sizes than tests/data/towers.

The libraries compute the outputs if they are installed. Formats whose library is not on PyPI are written from a model
of the same layers: openai/CLIP and DeCLIP from open_clip's, big_vision from transformers'. SLIP's are spelled out.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import reference_folder as slip
import torch
import torch.nn.functional as F
from open_clip.model import convert_weights_to_lp
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
from torch import Tensor, nn

CLIP: Any = open_clip.CLIP  # it takes dicts as well, which its annotations do not say
TIMM = {"img_size": 21, "patch_size": 7, "embed_dim": 36, "depth": 1, "num_heads": 3, "mlp_ratio": 3.0}
TIMM |= {"num_classes": 0, "class_token": False, "global_pool": "map"}
BATCH = 3


@register_model
def vit_made_up_here(pretrained: bool = False, **arguments: Any) -> VisionTransformer:
    """A timm model that open_clip can build by name."""
    return _create_vision_transformer("vit_made_up_here", pretrained=pretrained, **{**TIMM, **arguments})


def write_towers(folder: Path) -> None:
    """Write every format; without transformers, those that need it are left out."""
    torch.manual_seed(11)
    for write in (write_open_clip, write_openai, write_slip, write_declip):
        write(folder)
    if find_spec("transformers"):
        write_transformers(folder)


def write_open_clip(folder: Path) -> None:
    """Native ViTs with each activation, a ResNet, CoCa, and SigLIP with a timm tower."""
    vision = {"image_size": 18, "layers": 3, "width": 40, "patch_size": 6, "head_width": 10, "mlp_ratio": 2.5}
    text = {"context_length": 9, "vocab_size": 70, "width": 24, "heads": 3, "layers": 1, "mlp_ratio": 3.0}
    vit = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": text}
    tanh = {"act_kwargs": {"approximate": "tanh"}}
    resnet = {"image_size": 96, "layers": [2, 1, 1, 2], "width": 4, "patch_size": None, "head_width": 32}
    coca_text = {"context_length": 8, "vocab_size": 70, "width": 24, "heads": 3, "layers": 1}
    configs: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
        "quick": (open_clip.CLIP, {**vit, "quick_gelu": True}),
        "exact": (open_clip.CLIP, {**vit, "quick_gelu": False}),
        "tanh": (open_clip.CLIP, {**vit, "vision_cfg": vision | tanh, "text_cfg": text | tanh}),
        "conv": (open_clip.CLIP, {**vit, "vision_cfg": resnet, "quick_gelu": False}),
        "captions": (
            open_clip.CoCa,
            {
                "embed_dim": 24,
                "vision_cfg": vision
                | {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 3, "output_tokens": True},
                "text_cfg": coca_text | {"embed_cls": True, "output_tokens": True},
                "multimodal_cfg": coca_text | {"attn_pooler_heads": 3},
            },
        ),
        "sigmoid": (
            open_clip.CustomTextCLIP,
            {
                "embed_dim": 36,
                "init_logit_bias": -10,
                "vision_cfg": {
                    "image_size": 21,
                    "timm_model_name": "vit_made_up_here",
                    "timm_model_pretrained": False,
                    "timm_pool": "map",
                    "timm_proj": "none",
                },
                "text_cfg": text
                | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
            },
        ),
    }
    for name, (kind, config) in configs.items():
        model = drawn(kind(**config))
        if kind is open_clip.CoCa:
            nn.init.normal_(model.text_decoder.text_projection, std=0.2)  # open_clip leaves it uninitialised
        described = config | ({"timm_arguments": TIMM} if name == "sigmoid" else {})
        inputs = draw_inputs(config["vision_cfg"]["image_size"], config["text_cfg"], full=name == "sigmoid")
        save_file(
            {key: value.contiguous() for key, value in model.state_dict().items()}, folder / f"{name}.safetensors"
        )
        record(folder, name, {"config": described, "library": "open_clip"}, inputs, *encode(model, inputs))


def write_openai(folder: Path) -> None:
    """Plain dicts, halved; heads are 64 wide."""
    text = {"context_length": 10, "vocab_size": 90, "width": 128, "heads": 2, "layers": 2}
    vit = {"image_size": 30, "layers": 2, "width": 64, "patch_size": 10, "head_width": 64}
    resnet = {"image_size": 64, "layers": [1, 1, 2, 1], "width": 4, "patch_size": None, "head_width": 64}
    for name, vision in (("plain_vit", vit), ("plain_resnet", resnet)):
        model = drawn(CLIP(embed_dim=28, vision_cfg=vision, text_cfg=text, quick_gelu=True))
        convert_weights_to_lp(model, torch.float16)
        sizes = {"input_resolution": vision["image_size"], "context_length": 10, "vocab_size": 90}
        state = {key: value.clone() for key, value in model.state_dict().items()}
        torch.save(state | {key: torch.tensor(size) for key, size in sizes.items()}, folder / f"{name}.pt")
        inputs = draw_inputs(vision["image_size"], text)
        record(folder, name, {"library": "openai/CLIP"}, inputs, *encode(model.float(), inputs))


def write_slip(folder: Path) -> None:
    """Training checkpoints of the published code, CLIP, SLIP and SimCLR."""
    dims = replace(slip.OTHER_DIMS, vision_depth=2)
    config = {"vision_heads": dims.vision_heads, "transformer_heads": dims.text_heads}
    for method in slip.METHODS:
        state = slip.initial_state(method, dims)
        for name, value in state.items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                value.normal_(std=0.1)
        stored = {f"module.{key}": value.detach() for key, value in state.items()}
        torch.save({"epoch": 3, "state_dict": stored, "best_acc1": 1.5}, folder / f"trained_{method}.pt")
        inputs = draw_inputs(dims.image_size, {"context_length": dims.context, "vocab_size": dims.vocab})
        with torch.no_grad():
            trunk = slip.encode_image(state, dims, inputs["images"])
            description = {"config": config, "library": "facebookresearch/SLIP"}
            head = trunk if method == "clip" else ssl_head(state, trunk)
            if method == "simclr":
                arrays = {"images": inputs["images"], "image_trunk": trunk, "ssl_features": head}
                save_arrays(folder, f"trained_{method}", description, arrays)
                continue
            text = slip.encode_text(state, dims, inputs["text"])
            outputs = (trunk @ state["image_projection"], text, state["logit_scale"].exp(), None)
        arrays = inputs | {"image_trunk": trunk} | ({} if method == "clip" else {"ssl_features": head})
        record(folder, f"trained_{method}", description, arrays, *outputs)


def ssl_head(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the SSL head's output in evaluation mode."""
    for n in (1, 2):
        names = [f"image_mlp.bn{n}.{part}" for part in ("running_mean", "running_var", "weight", "bias")]
        mean, variance, weight, bias = (state[name] for name in names)
        x = x @ state[f"image_mlp.layer{n}.weight"].T + state[f"image_mlp.layer{n}.bias"]
        x = ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).relu()
    return x @ state["image_mlp.layer3.weight"].T + state["image_mlp.layer3.bias"]


def write_declip(folder: Path) -> None:
    """A training checkpoint whose text projection has a bias."""
    vision = {"image_size": 20, "layers": 1, "width": 36, "patch_size": 5, "head_width": 9}
    text = {"context_length": 13, "vocab_size": 80, "width": 24, "heads": 2, "layers": 2}
    model = drawn(CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=True))
    bias = torch.randn(16)
    stored = {}
    for key, value in model.state_dict().items():
        prefix = "" if key.startswith(("visual.", "logit_scale")) else "encode_text."
        stored[f"module.{prefix}{key}"] = value
    stored["module.encode_text.text_projection.weight"] = stored.pop("module.encode_text.text_projection").T
    stored["module.encode_text.text_projection.bias"] = bias
    stored["module.logit_scale"] = stored["module.logit_scale"].reshape(1)
    stored["module.projector.linear1.weight"] = torch.randn(4, 16)
    stored["module.text_label_predictor.weight"] = torch.randn(80, 24)
    torch.save({"model": stored, "optimizer": {}, "last_iter": 7}, folder / "iterations.pth.tar")
    inputs = draw_inputs(20, text)
    image, captions, scale, _ = encode(model, inputs)
    description = {"config": {"dims": {"vh": 4, "th": 2}}, "library": "Sense-GVT/DeCLIP"}
    record(folder, "iterations", description, inputs, image, captions + bias, scale, None)


def write_transformers(folder: Path) -> None:
    """CLIP with both rules for the end of a text, SigLIP, and SigLIP in big_vision's names."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel  # noqa: PLC0415  # slow to import

    text = {"vocab_size": 65, "hidden_size": 24, "intermediate_size": 60, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 9}
    vision = {"hidden_size": 40, "intermediate_size": 100, "num_hidden_layers": 1, "num_attention_heads": 5}
    vision |= {"image_size": 14, "patch_size": 7}
    for name, end, activation in (("hub_old", 2, "quick_gelu"), ("hub_end", 7, "gelu")):
        parts = [part | {"hidden_act": activation} for part in (text | {"eos_token_id": end}, vision)]
        config = CLIPConfig(text_config=parts[0], vision_config=parts[1], projection_dim=18)
        inputs = draw_inputs(14, {"context_length": 9, "vocab_size": 65})
        if end != 2:
            ids = inputs["text"]
            ids[ids == 7] = 8
            ids[ids >= 64] = end
            ids[ids == 0] = end  # the rest is padded with the end
        write_hub(folder, name, drawn(CLIPModel(config)), inputs)
    width = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 52}
    config = SiglipConfig(text_config=text | width, vision_config=vision | width)
    inputs = draw_inputs(14, {"context_length": 9, "vocab_size": 65}, full=True)
    model = drawn(SiglipModel(config))
    outputs = write_hub(folder, "hub_sigmoid", model, inputs)
    for name, stacked in (("jax", False), ("jax_scan", True)):
        arrays = big_vision(model.state_dict(), heads=3, stacked=stacked)
        np.savez(folder / f"{name}.npz", allow_pickle=False, **arrays)
        record(folder, name, {"dims": {"heads": 3}, "scan": stacked}, inputs, *outputs)


def write_hub(folder: Path, name: str, model: Any, inputs: dict[str, Tensor]) -> tuple[Any, ...]:
    """Write a model of transformers, and return its outputs."""
    with torch.no_grad():
        mask = torch.ones_like(inputs["text"])
        answers = model(input_ids=inputs["text"], pixel_values=inputs["images"], attention_mask=mask)
        image = model.get_image_features(pixel_values=inputs["images"])
        text = model.get_text_features(input_ids=inputs["text"])
    bias = getattr(model, "logit_bias", None)
    outputs = (image.pooler_output, text.pooler_output, model.logit_scale.detach().exp(), bias)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / f"{name}.safetensors")
    description = {"config": model.config.to_dict(), "library": "transformers"}
    more = {"attention_mask": mask, "logits_per_text": answers.logits_per_text}
    record(folder, name, description, inputs | more, *outputs)
    return outputs


def big_vision(state: dict[str, Tensor], *, heads: int, stacked: bool) -> dict[str, np.ndarray]:
    """Rename and reshape SigLIP's weights from transformers' names to those of big_vision."""
    arrays: dict[str, np.ndarray] = {"t": state["logit_scale"].numpy(), "b": state["logit_bias"].numpy()}

    def linear(name: str, weight: Tensor, bias: Tensor, kind: str = "") -> None:
        kernel, bias = weight.T, bias
        if kind == "in":
            kernel, bias = kernel.unflatten(1, (heads, -1)), bias.unflatten(0, (heads, -1))
        if kind == "out":
            kernel = kernel.unflatten(0, (heads, -1))
        arrays[f"{name}/kernel"], arrays[f"{name}/bias"] = kernel.numpy(), bias.numpy()

    def both(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def norm(name: str, foreign: str) -> None:
        arrays[f"{name}/scale"], arrays[f"{name}/bias"] = (tensor.numpy() for tensor in both(foreign))

    for ours, theirs, encoder in (("img", "vision_model", "Transformer"), ("txt", "text_model", "Encoder_0")):
        norm(f"{ours}/{encoder}/encoder_norm", f"{theirs}.{'post_layernorm' if ours == 'img' else 'final_layer_norm'}")
        depth = len({key.split(".")[3] for key in state if key.startswith(f"{theirs}.encoder.layers.")})
        for n in range(depth):
            block, layer = f"{ours}/{encoder}/encoderblock_{n}", f"{theirs}.encoder.layers.{n}"
            for i in (0, 1):
                norm(f"{block}/LayerNorm_{i}", f"{layer}.layer_norm{i + 1}")
                linear(f"{block}/MlpBlock_0/Dense_{i}", *both(f"{layer}.mlp.fc{i + 1}"))
            attention = f"{block}/MultiHeadDotProductAttention_0"
            for part in ("query", "key", "value"):
                linear(f"{attention}/{part}", *both(f"{layer}.self_attn.{part[0]}_proj"), "in")
            linear(f"{attention}/out", *both(f"{layer}.self_attn.out_proj"), "out")
        if stacked:
            names = {key.split("encoderblock_0/")[1] for key in arrays if f"{ours}/{encoder}/encoderblock_0/" in key}
            for key in names:
                layers = [arrays.pop(f"{ours}/{encoder}/encoderblock_{n}/{key}") for n in range(depth)]
                arrays[f"{ours}/{encoder}/encoderblock/{key}"] = np.stack(layers)
    embedding, bias = both("vision_model.embeddings.patch_embedding")
    arrays["img/embedding/kernel"], arrays["img/embedding/bias"] = embedding.permute(2, 3, 1, 0).numpy(), bias.numpy()
    for tower, model in (("img", "vision_model"), ("txt", "text_model")):
        arrays[f"{tower}/pos_embedding"] = state[f"{model}.embeddings.position_embedding.weight"][None].numpy()
    arrays["txt/Embed_0/embedding"] = state["text_model.embeddings.token_embedding.weight"].numpy()
    linear("txt/head", *both("text_model.head"))
    pool, head = "img/MAPHead_0", "vision_model.head"
    arrays[f"{pool}/probe"] = state[f"{head}.probe"].numpy()
    norm(f"{pool}/LayerNorm_0", f"{head}.layernorm")
    for i in (0, 1):
        linear(f"{pool}/MlpBlock_0/Dense_{i}", *both(f"{head}.mlp.fc{i + 1}"))
    weights = state[f"{head}.attention.in_proj_weight"].chunk(3)
    biases = state[f"{head}.attention.in_proj_bias"].chunk(3)
    for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        linear(f"{pool}/MultiHeadDotProductAttention_0/{part}", weight, bias, "in")
    linear(f"{pool}/MultiHeadDotProductAttention_0/out", *both(f"{head}.attention.out_proj"), "out")
    return {f"params/{key}": np.ascontiguousarray(array) for key, array in arrays.items()}


@torch.no_grad()
def drawn(model: Any) -> Any:
    """Draw every weight, bias and running statistic, and set evaluation mode."""
    for name, value in model.state_dict(keep_vars=True).items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            value.normal_(std=0.1)
        elif name.endswith("logit_scale"):
            value.fill_(2.1)
        elif name.endswith("logit_bias"):
            value.fill_(-3.3)
        elif value.is_floating_point() and value.ndim < 2:
            value.add_(0.1 * torch.randn(value.shape))
        elif value.is_floating_point():
            value.normal_(std=1.2 * (value[0].numel() if value.ndim > 2 else value.shape[-1]) ** -0.5)
    return model.eval()


def draw_inputs(image_size: int, text: dict[str, Any], *, full: bool = False) -> dict[str, Tensor]:
    """Draw images and ids: a start, words and the largest id, then zeros; or words only if `full`."""
    length, vocab_size = text["context_length"], text["vocab_size"]
    ids = torch.randint(1, vocab_size - 2, (BATCH, length))
    if not full:
        for row, end in zip(ids, (3, length - 1, 2), strict=True):
            row[0], row[end] = vocab_size - 2, vocab_size - 1
            row[end + 1 :] = 0
    return {"images": torch.randn(BATCH, 3, image_size, image_size), "text": ids}


@torch.no_grad()
def encode(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return features, scale and bias of a model of open_clip."""
    encoders: list[tuple[Callable[..., Tensor], str]] = [(model.encode_image, "images"), (model.encode_text, "text")]
    image, text = (encoder(inputs[key], normalize=False) for encoder, key in encoders)
    return image, text, model.logit_scale.exp(), getattr(model, "logit_bias", None)


def record(
    folder: Path,
    name: str,
    description: dict[str, Any],
    arrays: dict[str, Tensor],
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    bias: Tensor | None,
) -> None:
    """Write the configuration, the inputs, and the outputs that follow from the features."""
    units = [F.normalize(features, dim=-1) for features in (image, text)]
    logits = scale * units[0] @ units[1].T + (0 if bias is None else bias)
    outputs = {"image_features": image, "text_features": text, "logits_per_image": logits, "logit_scale_exp": scale}
    outputs |= {"image_features_normalized": units[0], "text_features_normalized": units[1]}
    save_arrays(folder, name, description, arrays | outputs | ({} if bias is None else {"logit_bias": bias}))


def save_arrays(folder: Path, name: str, description: dict[str, Any], arrays: dict[str, Tensor]) -> None:
    """Write `NAME.json` and `NAME_io.npz`."""
    (folder / f"{name}.json").write_text(json.dumps(description))
    np.savez(
        folder / f"{name}_io.npz", allow_pickle=False, **{key: value.detach().numpy() for key, value in arrays.items()}
    )
