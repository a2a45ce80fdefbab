"""Figures of random models on three made-up sets against those that clip_benchmark's own functions gave.

`tests/support/record_clip_benchmark.py` says how they were recorded.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from clip_benchmark_sets import CLASSES, TEMPLATES, MadeUp, model_config, random_model
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save_file

import openslip
from openslip.evaluation.retrieval import Retrieval
from openslip.evaluation.zeroshot import ZeroShot
from openslip.inference.bundle import Bundle

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "clip_benchmark.json").read_text())
SIZES = ["small", pytest.param("full", marks=pytest.mark.slow)]  # full: ViT-B/32, which takes 600 MB of disk


@pytest.fixture(scope="module", params=SIZES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Bundle]:
    """The random model as open_clip stores it, read by openslip."""
    folder = tmp_path_factory.mktemp(request.param)
    model = random_model(request.param)
    mean, std = (list(values) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    preprocess = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model_config(request.param), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {key: tensor.clone().contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    bundle = openslip.load(folder)
    (folder / "open_clip_model.safetensors").unlink()
    return request.param, bundle


@pytest.mark.parametrize("name", CLASSES)
def test_accuracies_are_those_of_clip_benchmark(loaded: tuple[str, Bundle], name: str):
    size, bundle = loaded
    expected = RECORDED[size][name]
    evaluation = ZeroShot(
        title=name,
        source=MadeUp(name, bundle.transform.size),
        classnames=CLASSES[name],
        templates=TEMPLATES[name],
        batch_size=32,
        num_workers=0,
    )
    metrics, arrays = evaluation.run(bundle), evaluation.arrays
    assert arrays["predictions"].tolist() == expected["predictions"]
    assert metrics["top1"] == pytest.approx(100 * expected["acc1"], abs=1e-6)
    assert metrics["mean_per_class"] == pytest.approx(100 * expected["mean_per_class_recall"], abs=1e-6)
    if expected["acc5"] is None:
        assert "top5" not in metrics
    else:
        assert metrics["top5"] == pytest.approx(100 * expected["acc5"], abs=1e-6)


def test_recalls_are_those_of_clip_benchmark(loaded: tuple[str, Bundle]):
    size, bundle = loaded
    expected = RECORDED[size]["captions"]
    source = MadeUp("captions", bundle.transform.size)
    metrics = Retrieval(title="captions", source=source, batch_size=32, num_workers=0).run(bundle)
    for ours, theirs in (("image_to_text", "text_retrieval"), ("text_to_image", "image_retrieval")):
        for place in (1, 5, 10):
            # clip_benchmark's means are float32
            share = expected[f"{theirs}_recall@{place}"]
            assert metrics[f"{ours}_recall_{place}"] / 100 == pytest.approx(share, abs=1e-6)
