"""Each fault that is planted in an exported folder must be refused by the export's own check.

The rows of FAULTS are the forms, and transformers' three classes of models. A fault is what a wrong writer would leave:
a transposed projection, another activation, end id, epsilon, number of heads or way to resize, or a missing bias.
"""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported_models import CLIP_SIZES, bundle_of, clip, deviations, timm_tower, without_vocabulary, written
from onnx import helper, numpy_helper
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from openslip.errors import UserError
from openslip.export.forms.onnx import IMAGE, SETTINGS, TEXT
from openslip.export.forms.open_clip import CONFIG as OPEN_CLIP
from openslip.export.forms.open_clip import WEIGHTS as OPEN_CLIP_WEIGHTS
from openslip.inference.bundle import Bundle

Damage = Callable[[Path], Any]
Folders = Callable[[str], tuple[Bundle, Path]]
WEIGHTS, CONFIG, IMAGES, TOKENS = (
    "model.safetensors",
    "config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
)


def square(**options: Any) -> dict[str, Any]:
    """Return CLIP's architecture with square projections, and another epsilon in the text tower."""
    architecture = clip(**options)
    return architecture | {"text_tower": architecture["text_tower"] | {"norm_eps": 2e-5}}


def shallow() -> dict[str, Any]:
    """Return one whose graphs are made in less time."""
    architecture = square(projection_bias=True)
    tower = timm_tower("vit_base_patch16_clip_224", 32, **{**CLIP_SIZES, "depth": 1})
    return architecture | {"image_tower": tower, "text_tower": architecture["text_tower"] | {"depth": 1}}


SQUASH, FLOOR = {"resize": "squash"}, {"crop": "floor"}
BIASES = {"logit_bias_init": -9.0, "projection_bias": "text"}
ROWS: dict[str, tuple[str, Callable[[], Bundle]]] = {
    "safetensors": ("safetensors", lambda: without_vocabulary(square(**BIASES), transform=SQUASH)),
    "open_clip": ("open_clip", lambda: without_vocabulary(square(**BIASES), transform=SQUASH)),
    "CLIPModel": ("huggingface", lambda: without_vocabulary("clip")),
    "CLIPModel, vocabulary": ("huggingface", lambda: bundle_of("clip")),
    "SiglipModel": ("huggingface", lambda: without_vocabulary("siglip")),
    "SiglipModel, vocabulary": ("huggingface", lambda: bundle_of("siglip")),
    "VisionTextDualEncoderModel": ("huggingface", lambda: without_vocabulary("slip")),
    "timm": ("timm", lambda: without_vocabulary(square(projection_bias=True), transform=SQUASH)),
    "onnx": ("onnx", lambda: without_vocabulary(shallow(), transform=FLOOR)),
}


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def setting(name: str, *keys: str, value: Any) -> Damage:
    return edited(name, functools.partial(set_in, keys, value))


def set_in(keys: tuple[str, ...], value: Any, content: dict[str, Any]) -> None:
    *parents, last = keys
    for key in parents:
        content = content[key]
    assert content[last] != value
    content[last] = value


def reweighted(change: Callable[[dict[str, Tensor]], Any], name: str = WEIGHTS) -> Damage:
    def edit(folder: Path) -> None:
        rewrite(folder / name, change, lambda metadata: None)

    return edit


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], Any], describe: Callable[[dict[str, Any]], Any]) -> None:
    with safe_open(path, "pt") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(weights)
    describe(metadata)
    metadata.pop("crc32", None)  # which would see every fault
    save_file({name: weight.clone().contiguous() for name, weight in weights.items()}, path, metadata)


def described(*keys: str, value: Any) -> Damage:
    """Return a fault in the description that our own form has in its metadata."""

    def describe(metadata: dict[str, Any]) -> None:
        content = json.loads(metadata["openslip"])
        set_in(keys, value, content)
        metadata["openslip"] = json.dumps(content)

    return lambda folder: rewrite(folder / WEIGHTS, lambda weights: None, describe)


def transposed(name: str, file: str = WEIGHTS) -> Damage:
    return reweighted(lambda weights: weights.update({name: weights[name].T}), file)


def without(name: str, file: str = WEIGHTS) -> Damage:
    return reweighted(lambda weights: weights.pop(name), file)


def redrawn(file: str, change: Callable[[onnx.ModelProto], Any]) -> Damage:
    """Return a fault in a graph."""

    def edit(folder: Path) -> None:
        model = onnx.load(folder / file)
        change(model)
        onnx.save(model, folder / file)

    return edit


def constant(file: str, which: Callable[[str, np.ndarray], Any], change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """Return a fault in the only weight or constant of a graph for which `which` is true."""

    def edit(model: onnx.ModelProto) -> None:
        (chosen,) = (each for each in model.graph.initializer if which(each.name, numpy_helper.to_array(each)))
        value = np.ascontiguousarray(change(numpy_helper.to_array(chosen)))
        assert not np.array_equal(value, numpy_helper.to_array(chosen))
        chosen.CopyFrom(numpy_helper.from_array(value, chosen.name))
        del model.graph.value_info[:]  # shapes of the right graph

    return redrawn(file, edit)


def named(name: str) -> Callable[[str, np.ndarray], bool]:
    return lambda other, _: other == name


def other_model(content: dict[str, Any]) -> None:
    """Name a model of timm with the same layers and another epsilon, which no argument can set."""
    content["architecture"] = "vit_base_patch16_224"
    content["model_args"]["pre_norm"] = True


def of_clip(content: dict[str, Any]) -> None:
    """Name the image processor that keeps the ratio of the sides and crops."""
    content |= {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 21}, "do_center_crop": True}


def epsilon(value: float | None) -> Damage:
    """Return a fault in the epsilon of all norms of the text graph; None stands for ONNX's default."""

    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for attribute in [*node.attribute]:
                if node.op_type == "LayerNormalization" and attribute.name == "epsilon":
                    node.attribute.remove(attribute)
                    node.attribute.extend([] if value is None else [helper.make_attribute("epsilon", value)])

    return redrawn(TEXT, edit)


def unnormalised(model: onnx.ModelProto) -> None:
    """Return features before they are divided by their length."""
    (last,) = (node for node in model.graph.node if "features" in node.output)
    model.graph.output[0].name = last.input[0]


KINDS = {"transposed projection", "activation", "end id", "epsilon", "heads", "resize mode", "missing bias"}
# SigLIP's text tower pools the last position of each row, and timm has no texts.
IMPOSSIBLE = {("SiglipModel", "end id"), ("timm", "end id")}
# For each row and fault: the damage, and what the check then says.
FAULTS: dict[str, dict[str, tuple[Damage, str]]] = {
    "safetensors": {
        "transposed projection": (transposed("model.image_projection"), "image_features by"),
        "transposed text projection": (transposed("model.text_projection"), "text_features by"),
        "activation": (described("architecture", "text_tower", "activation", value="gelu"), "text_features by"),
        "end id": (described("tokenizer", "end", value=0), "text_features by"),
        "epsilon": (described("architecture", "text_tower", "norm_eps", value=1e-5), "text_features_64 by"),
        "heads": (described("architecture", "image_tower", "arguments", "num_heads", value=2), "image_features by"),
        "heads of texts": (described("architecture", "text_tower", "heads", value=3), "text_features by"),
        "resize mode": (described("transform", "resize", value="shortest"), "pixels by"),
        "missing bias": (without("model.text_projection_bias"), "text_projection_bias"),
        "logit bias": (reweighted(lambda w: w["model.logit_bias"].zero_()), "logit_bias by"),
    },
    "open_clip": {
        "transposed projection": (transposed("visual.proj", OPEN_CLIP_WEIGHTS), "image_features by"),
        "transposed text projection": (transposed("text_projection.weight", OPEN_CLIP_WEIGHTS), "text_features by"),
        "activation": (setting(OPEN_CLIP, "model_cfg", "quick_gelu", value=False), "image_features by"),
        "end id": (setting(OPEN_CLIP, "model_cfg", "text_cfg", "eos_id", value=57), "text_features by"),
        "pooling": (setting(OPEN_CLIP, "model_cfg", "text_cfg", "pool_type", value="last"), "text_features by"),
        "causal mask": (setting(OPEN_CLIP, "model_cfg", "text_cfg", "no_causal_mask", value=True), "text_features by"),
        "epsilon": (edited(OPEN_CLIP, lambda c: c["model_cfg"]["text_cfg"].pop("norm_kwargs")), "text_features_64 by"),
        "heads": (setting(OPEN_CLIP, "model_cfg", "vision_cfg", "head_width", value=12), "image_features by"),
        "heads of texts": (setting(OPEN_CLIP, "model_cfg", "text_cfg", "heads", value=4), "text_features by"),
        "resize mode": (setting(OPEN_CLIP, "preprocess_cfg", "resize_mode", value="shortest"), "pixels by"),
        "interpolation": (setting(OPEN_CLIP, "preprocess_cfg", "interpolation", value="bilinear"), "pixels by"),
        "mean": (edited(OPEN_CLIP, lambda c: c["preprocess_cfg"].pop("mean")), "pixels by"),
        "missing bias": (without("visual.ln_post.bias", OPEN_CLIP_WEIGHTS), r"ln_post\.bias"),
        "projection bias": (
            reweighted(lambda w: w["text_projection.bias"].zero_(), OPEN_CLIP_WEIGHTS),
            "text_features by",
        ),
        "logit bias": (reweighted(lambda w: w["logit_bias"].zero_(), OPEN_CLIP_WEIGHTS), "logit_bias by"),
        "logit scale": (reweighted(lambda w: w["logit_scale"].add_(1e-3), OPEN_CLIP_WEIGHTS), "logit_scale by"),
    },
    "CLIPModel": {
        "transposed projection": (transposed("visual_projection.weight"), "image_features by"),
        "activation": (setting(CONFIG, "vision_config", "hidden_act", value="gelu"), "image_features by"),
        "end id": (setting(CONFIG, "text_config", "eos_token_id", value=57), "text_features by"),
        "epsilon": (setting(CONFIG, "vision_config", "layer_norm_eps", value=1e-6), "image_features_64 by"),
        "heads": (setting(CONFIG, "vision_config", "num_attention_heads", value=2), "image_features by"),
        "resize mode": (setting(IMAGES, "size", value={"height": 32, "width": 32}), "pixels by"),
        "missing bias": (without("vision_model.post_layernorm.bias"), r"post_layernorm\.bias"),
        "logit scale": (reweighted(lambda w: w["logit_scale"].add_(0.01)), "logit_scale by"),
    },
    "CLIPModel, vocabulary": {
        "context": (setting(TOKENS, "model_max_length", value=12), "ids by"),
        "no tokenizer": (lambda folder: (folder / TOKENS).unlink(), "has no tokenizer"),
    },
    "SiglipModel": {
        "transposed projection": (transposed("text_model.head.weight"), "text_features by"),
        "activation": (setting(CONFIG, "text_config", "hidden_act", value="gelu"), "text_features_64 by"),
        "epsilon": (setting(CONFIG, "vision_config", "layer_norm_eps", value=1e-5), "image_features_64 by"),
        "heads": (setting(CONFIG, "text_config", "num_attention_heads", value=3), "text_features by"),
        "resize mode": (edited(IMAGES, of_clip), "pixels by"),
        "mean": (setting(IMAGES, "image_mean", value=[0.48, 0.46, 0.41]), "pixels by"),
        "missing bias": (without("logit_bias"), "logit_bias"),
        "missing bias of the pooling": (without("vision_model.head.layernorm.bias"), r"head\.layernorm\.bias"),
        "logit bias": (reweighted(lambda w: w["logit_bias"].add_(0.01)), "logit_bias by"),
    },
    "SiglipModel, vocabulary": {
        "attention mask": (
            setting(TOKENS, "model_input_names", value=["input_ids", "attention_mask"]),
            "text_features by",
        )
    },
    "VisionTextDualEncoderModel": {
        "transposed projection": (transposed("text_projection.weight"), "text_features by"),
        "transposed image projection": (transposed("visual_projection.weight"), "image_features by"),
        "activation": (setting(CONFIG, "text_config", "hidden_act", value="gelu"), "text_features by"),
        "end id": (setting(CONFIG, "text_config", "eos_token_id", value=57), "text_features by"),
        "epsilon": (setting(CONFIG, "text_config", "layer_norm_eps", value=1e-6), "text_features_64 by"),
        "heads": (setting(CONFIG, "vision_config", "model_args", "num_heads", value=6), "image_features by"),
        "resize mode": (setting(IMAGES, "size", value={"height": 32, "width": 32}), "pixels by"),
        "interpolation": (setting(IMAGES, "resample", value=2), "pixels by"),
        "missing bias": (without("text_model.encoder.layers.0.mlp.fc1.bias"), r"fc1\.bias"),
        "missing bias of timm": (without("vision_model.timm_model.blocks.0.mlp.fc1.bias"), r"fc1\.bias"),
    },
    "timm": {
        "transposed projection": (transposed("head.weight"), "image_features by"),
        "activation": (edited(CONFIG, lambda c: c["model_args"].pop("act_layer")), "image_features by"),
        "epsilon": (edited(CONFIG, other_model), "image_features_64 by"),
        "heads": (setting(CONFIG, "model_args", "num_heads", value=6), "image_features by"),
        "pooling": (
            edited(CONFIG, lambda c: c["model_args"].update(global_pool="avg", fc_norm=False)),
            "image_features by",
        ),
        "resize mode": (setting(CONFIG, "pretrained_cfg", "crop_mode", value="center"), "pixels by"),
        "interpolation": (setting(CONFIG, "pretrained_cfg", "interpolation", value="bilinear"), "pixels by"),
        "crop_pct": (
            edited(CONFIG, lambda c: c["pretrained_cfg"].update(crop_pct=0.9, crop_mode="center")),
            "pixels by",
        ),
        "std": (setting(CONFIG, "pretrained_cfg", "std", value=[0.5, 0.5, 0.5]), "pixels by"),
        "missing bias": (without("norm_pre.bias"), r"norm_pre\.bias"),
        "projection bias": (reweighted(lambda w: w["head.bias"].zero_()), "image_features by"),
    },
    "onnx": {
        "transposed projection": (constant(IMAGE, named("model.image_projection"), np.transpose), "image_features by"),
        "transposed text projection": (
            constant(TEXT, named("model.text_projection"), np.transpose),
            "text_features by",
        ),
        "activation": (
            constant(TEXT, lambda _, x: x.size == 1 and np.isclose(x, 1.702), np.ones_like),
            "text_features by",
        ),
        "end id": (constant(TEXT, lambda _, x: x.size == 1 and x == 58, lambda x: x - 1), "text_features by"),
        "epsilon": (epsilon(1e-6), "text_norm_eps by"),
        "default epsilon": (epsilon(None), "text_norm_eps by"),
        "heads": (constant(TEXT, lambda _, x: x.shape == (5,), lambda x: x[[0, 1, 2, 4, 3]]), "text_features by"),
        "resize mode": (setting(SETTINGS, "image", "resize", value="squash"), "pixels by"),
        "interpolation": (setting(SETTINGS, "image", "interpolation", value="bilinear"), "pixels by"),
        "crop": (setting(SETTINGS, "image", "crop", value="round"), "pixels by"),
        "mean": (setting(SETTINGS, "image", "mean", value=[0.5, 0.5, 0.5]), "pixels by"),
        "missing bias": (
            constant(IMAGE, lambda name, _: name.endswith("mlp.fc1.bias"), np.zeros_like),
            "image_features by",
        ),
        "projection bias": (constant(TEXT, named("model.text_projection_bias"), np.zeros_like), "text_features by"),
        "no normalisation": (redrawn(IMAGE, unnormalised), "image_lengths by"),
        "no texts": (lambda folder: (folder / TEXT).unlink(), "text_features by inf"),
        "logit scale": (edited(SETTINGS, lambda content: content.pop("logit_scale")), "logit_scale by inf"),
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Return the function from a row to its model and its export, which the check accepts."""

    @functools.cache
    def export(row: str) -> tuple[Bundle, Path]:
        form, build = ROWS[row]
        bundle = build()
        folder = written(bundle, tmp_path_factory.mktemp("faultless"), form)
        deviations(bundle, folder, form)  # raises no error
        return bundle, folder

    return export


def test_every_writer_has_every_fault() -> None:
    for row in ROWS:
        if not row.endswith("vocabulary"):
            assert {kind for kind in KINDS if (row, kind) not in IMPOSSIBLE} <= FAULTS[row].keys()


@pytest.mark.parametrize(
    ("row", "fault"),
    [  # a graph for ONNX takes seconds
        pytest.param(row, fault, marks=[pytest.mark.slow] if row == "onnx" else [])
        for row, faults in FAULTS.items()
        for fault in faults
    ],
)
def test_a_planted_fault_is_refused_by_the_check(row: str, fault: str, folders: Folders, tmp_path: Path) -> None:
    bundle, folder = folders(row)
    damage, message = FAULTS[row][fault]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    # In the process of its own, what a library raises is one line of a UserError.
    with pytest.raises((UserError, ValueError, RuntimeError), match=message):
        deviations(bundle, tmp_path, ROWS[row][0])
