"""Exports to ONNX, which onnxruntime computes; each planted fault must be refused by the export's own check."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_models import (
    BIDIRECTIONAL,
    TEXT,
    bundle_of,
    clip,
    clip_resnet,
    deviations,
    siglip,
    slip,
    timm_tower,
    two_towers,
    written,
)
from onnx import helper, numpy_helper
from torch.nn.functional import normalize

from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.export.check import LIMIT
from openslip.export.forms.onnx import norm_eps, prepare, runner, tokenize, write_graph, write_vocabulary
from openslip.export.inputs import CAPTIONS, draw_images
from openslip.export.onnx_towers import TextGraph
from openslip.export.towers import pooled
from openslip.inference.architecture import build_model
from openslip.text.bare_ids import BareIds
from openslip.text.clip_bpe import ClipBpe

IMAGE, TEXTS, SETTINGS = "image.onnx", "text.onnx", "preprocessing.json"


def test_the_padded_text_graph_computes_what_the_packed_tower_does() -> None:
    for text, rule in (
        (TEXT, BareIds(context_length=77, vocab_size=49408, pooled="largest")),
        (TEXT, BareIds(context_length=77, vocab_size=49408, pooled="first", end=49407)),
        (TEXT | BIDIRECTIONAL, BareIds(context_length=16, vocab_size=49408, pooled="last")),
        (TEXT | {"causal": False, "pooling": "first"}, BareIds(context_length=77, vocab_size=49408, pooled="largest")),
        (TEXT | {"pooling": "mean"}, BareIds(context_length=77, vocab_size=49408, pooled="largest")),
    ):
        model = bundle_of(two_towers(slip()["image_tower"], text)).model
        ids = torch.randint(1, 49406, (3, rule.context_length))
        ids[[0, 1, 2], [3, 1, 9]] = 49407
        with torch.no_grad():
            expected = normalize(model.encode_text(ids, rule.lengths(ids)), dim=1)
            torch.testing.assert_close(TextGraph(model, pooled(rule, "onnx"))(ids), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"resize": "shortest", "crop": "floor"},
        {"resize": "shortest", "resize_to": 40, "interpolation": "bicubic"},
        {"resize": "squash"},
        {"resize": "longest"},
    ],
    ids=["floor", "margin", "squash", "longest"],
)
def test_pillow_and_numpy_prepare_the_same_pixels(settings: dict[str, Any]) -> None:
    transform = EvalTransform(size=32, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.25], **settings)
    stated = {name: getattr(transform, name) for name in ("size", "interpolation", "resize", "resize_to", "crop")}
    stated |= {"mean": transform.mean, "std": transform.std}
    for image in draw_images():
        np.testing.assert_allclose(prepare(image, stated), transform(image).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("truncation", ["keep_end", "drop_end"])
def test_the_vocabulary_makes_whole_rows(truncation: str, tmp_path: Path) -> None:
    tokenizer = ClipBpe(context_length=20, truncation=truncation, special_text="token")
    write_vocabulary(tokenizer, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    rows = tokenize(tmp_path / "tokenizer.json")(CAPTIONS)
    ids, lengths = tokenizer.encode(CAPTIONS)
    assert rows.shape == (len(CAPTIONS), 20)
    for row, expected, length in zip(rows, ids.numpy(), lengths.tolist(), strict=True):
        np.testing.assert_array_equal(row[:length], expected[:length])
        assert row.argmax() + 1 == length


def test_word_vectors_have_no_graph(tmp_path: Path) -> None:
    text = {"_target_": "openslip.models.bag_of_tokens.BagOfTokens", "vocab_size": 49408, "width": 12}
    options = {"projects_text": False}
    model = build_model(two_towers(timm_tower("test_vit", 160), text, **options))
    bundle = replace(bundle_of(slip()), model=model)
    with pytest.raises(UserError, match="no graph of a BagOfTokens; use --to safetensors"):
        written(bundle, tmp_path, "onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "transform"),
    [
        (clip("gelu_tanh", projection_bias=True), {"crop": "floor"}),
        (clip_resnet(), {"resize_to": 70}),
        (slip(), {"interpolation": "bilinear"}),
        (slip("test_efficientnet"), {}),
        (siglip(), {"resize": "squash"}),
    ],
    ids=["clip", "resnet", "slip", "batch norm", "siglip"],
)
def test_onnxruntime_computes_the_same(architecture: dict[str, Any], transform: dict[str, Any], tmp_path: Path) -> None:
    bundle = bundle_of(architecture, **transform)
    found = deviations(bundle, written(bundle, tmp_path, "onnx"), "onnx")
    assert found.keys() >= {"pixels", "image_features", "ids", "text_features", "logit_scale"}
    assert max(found.values()) <= LIMIT
    assert not [*tmp_path.glob("*.data")]


def reweighted(file: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Return a fault in one weight."""

    def edit(folder: Path) -> None:
        model = onnx.load(folder / file)
        (weight,) = (weight for weight in model.graph.initializer if weight.name == name)
        weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(weight))), name))
        onnx.save(model, folder / file)

    return edit


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4, eps=1e-6))
        self.elsewhere = torch.nn.Linear(100, 100)  # as the tower of the other graph

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_a_graph_names_no_folder_and_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openslip.export.forms.onnx.LARGEST", 1000)
    level = logging.getLogger("onnxscript").level
    module = Small()
    write_graph(module, "x", torch.ones(2, 4), tmp_path / "graph.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["graph.onnx"]
    content = (tmp_path / "graph.onnx").read_bytes()
    for folder in (Path(__file__).parents[2], Path(torch.__file__).parent, tmp_path):
        assert str(folder).encode() not in content
    assert b"stack_trace" not in content
    assert norm_eps(tmp_path / "graph.onnx") == [float(np.float32(1e-6))]
    features = runner(tmp_path / "graph.onnx")(np.eye(4, dtype=np.float32))
    assert np.abs(features.mean(axis=1)).max() < 1e-6
    monkeypatch.setattr("openslip.export.forms.onnx.LARGEST", 10)
    write_graph(module, "x", torch.ones(2, 4), tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx.data").exists()
    np.testing.assert_allclose(runner(tmp_path / "large.onnx")(np.eye(4, dtype=np.float32)), features, rtol=1e-6)
    with pytest.raises(Exception, match="export"):
        write_graph(Unexportable(), "x", torch.ones(2, 4), tmp_path / "other.onnx")
    assert logging.getLogger("onnxscript").level == level


class Unexportable(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


def activation(folder: Path) -> None:
    model = onnx.load(folder / TEXTS)
    factors = [weight for weight in model.graph.initializer if numpy_helper.to_array(weight).size == 1]
    (factor,) = (weight for weight in factors if np.isclose(numpy_helper.to_array(weight), 1.702))
    factor.CopyFrom(numpy_helper.from_array(np.array(1.0, np.float32), factor.name))
    onnx.save(model, folder / TEXTS)


def epsilon(value: float | None) -> Callable[[Path], None]:
    """Return a fault in the epsilon of all norms of the text graph; None stands for ONNX's default."""

    def edit(folder: Path) -> None:
        model = onnx.load(folder / TEXTS)
        for node in model.graph.node:
            for attribute in [*node.attribute]:
                if node.op_type == "LayerNormalization" and attribute.name == "epsilon":
                    node.attribute.remove(attribute)
                    node.attribute.extend([] if value is None else [helper.make_attribute("epsilon", value)])
        onnx.save(model, folder / TEXTS)

    return edit


def unnormalised(folder: Path) -> None:
    """Return features of the image graph before they are divided by their length."""
    model = onnx.load(folder / IMAGE)
    (last,) = (node for node in model.graph.node if "features" in node.output)
    model.graph.output[0].name = last.input[0]
    onnx.save(model, folder / IMAGE)


def bias_of_a_layer(folder: Path) -> None:
    model = onnx.load(folder / IMAGE)
    bias = next(weight for weight in model.graph.initializer if weight.name.endswith("mlp.fc1.bias"))
    bias.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(bias)), bias.name))
    onnx.save(model, folder / IMAGE)


def resettled(**changes: Any) -> Callable[[Path], None]:
    """Return a fault in the settings of the images."""

    def edit(folder: Path) -> None:
        settings = json.loads((folder / SETTINGS).read_text())
        settings["image"] |= changes
        (folder / SETTINGS).write_text(json.dumps(settings))

    return edit


def unscaled(folder: Path) -> None:
    settings = json.loads((folder / SETTINGS).read_text())
    del settings["logit_scale"]
    (folder / SETTINGS).write_text(json.dumps(settings))


FAULTS: dict[str, Callable[[Path], None]] = {
    "transposed projection": reweighted(IMAGE, "model.image_projection", np.transpose),
    "transposed text projection": reweighted(TEXTS, "model.text_projection", np.transpose),
    "projection bias": reweighted(TEXTS, "model.text_projection_bias", np.zeros_like),
    "activation": activation,
    "epsilon": epsilon(1e-6),
    "default epsilon": epsilon(None),
    "no normalisation": unnormalised,
    "bias of a layer": bias_of_a_layer,
    "no texts": lambda folder: (folder / TEXTS).unlink(),
    "resize mode": resettled(resize="squash"),
    "interpolation": resettled(interpolation="bilinear"),
    "crop": resettled(crop="round"),
    "mean": resettled(mean=[0.5, 0.5, 0.5]),
    "logit scale": unscaled,
}


@pytest.fixture(scope="module")
def faultless(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    architecture = clip(embed_dim=22, projection_bias=True)
    sizes = {"embed_dim": 22, "num_heads": 2, "mlp_ratio": 2.0}
    architecture["image_tower"] = timm_tower("vit_base_patch16_clip_224", 32, patch_size=8, depth=1, **sizes)
    architecture["text_tower"] = architecture["text_tower"] | {"width": 22, "depth": 1, "norm_eps": 2e-5}
    bundle = bundle_of(architecture, crop="floor")
    folder = written(bundle, tmp_path_factory.mktemp("faultless"), "onnx")
    deviations(bundle, folder, "onnx")  # raises no error
    return bundle, folder


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused_by_the_check(fault: str, faultless: tuple[Any, Path], tmp_path: Path) -> None:
    bundle, folder = faultless
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    FAULTS[fault](tmp_path)
    with pytest.raises(UserError, match="differs from ours"):
        deviations(bundle, tmp_path, "onnx")
