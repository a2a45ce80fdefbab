"""Exports to ONNX, which onnxruntime computes."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_models import (
    BIDIRECTIONAL,
    CONTEXT,
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

LARGEST = BareIds(context_length=CONTEXT, vocab_size=49408, pooled="largest")


def test_the_padded_text_graph_computes_what_the_packed_tower_does() -> None:
    for text, rule in (
        (TEXT, LARGEST),
        (TEXT, BareIds(context_length=CONTEXT, vocab_size=49408, pooled="first", end=49407)),
        (TEXT | BIDIRECTIONAL, BareIds(context_length=CONTEXT, vocab_size=49408, pooled="last")),
        (TEXT | {"causal": False, "pooling": "first"}, LARGEST),
        (TEXT | {"pooling": "mean"}, LARGEST),
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
    text = {"_target_": "openslip.models.bag_of_tokens.BagOfTokens", "vocab_size": 49408, "width": 24}
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
    bundle = bundle_of(architecture, transform=transform)
    found = deviations(bundle, written(bundle, tmp_path, "onnx"), "onnx")
    assert found.keys() >= {"pixels", "image_features", "ids", "text_features", "logit_scale"}
    assert max(found.values()) <= LIMIT
    assert not [*tmp_path.glob("*.data")]


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
