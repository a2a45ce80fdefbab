"""The methods over labelled pairs: what their configs compose, and that a stored model gives the same features."""

from pathlib import Path
from typing import Any

import pytest
import torch
from views import MEAN, STD

import openslip
from openslip.config.build import build_parts, settled
from openslip.config.compose import compose_config
from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.files import write
from openslip.inference.formats.openslip import describe

ROWS: dict[str, tuple[str, str, str, list[str], dict[str, Any]]] = {
    # by model: class of the objective and of the model, evaluation, views, settings of the model and the objective
    "hadsell_tiny": (
        "openslip.objectives.hadsell.Hadsell",
        "openslip.models.projected_image_encoder.ProjectedImageEncoder",
        "builtin_map",
        ["aug1", "aug2", "label"],
        {"embed_dim": 2},
    ),
    "siamese_tiny": (
        "openslip.objectives.siamese.SiamesePairs",
        "openslip.models.siamese.Siamese",
        "builtin_one_shot",
        ["aug1", "aug2", "label"],
        {"embed_dim": 256},
    ),
    "siamese_vitb16": (
        "openslip.objectives.siamese.SiamesePairs",
        "openslip.models.siamese.Siamese",
        "builtin_one_shot",
        ["aug1", "aug2", "label"],
        {"embed_dim": 4096},  # Koch et al. 2015, figure 4
    ),
    "zero_data_tiny": (
        "openslip.objectives.zero_data.ZeroData",
        "openslip.models.dual_encoder.DualEncoder",
        "builtin",
        ["image", "text", "label"],
        {"embed_dim": 64, "logit_bias_init": -10.0},
    ),
}


@pytest.mark.parametrize("model", ROWS)
def test_a_model_is_its_method(model: str):
    objective, built, evaluation, views, settings = ROWS[model]
    config, _ = compose_config("train", [f"model={model}"])
    assert (config["objective"]["_target_"], config["model"]["_target_"]) == (objective, built)
    assert list(config["evaluation"]) == [evaluation]
    assert list(config["objective"]["views"]) == views
    assert {key: config["model"][key] for key in settings} == settings
    with torch.device("meta"):
        parts = build_parts(config)
        parts.objective.prepare(parts.model)
    assert not list(parts.objective.parameters())  # inference needs all of it, so the model has it
    with pytest.raises(UserError, match="no negatives"):
        build_parts({**config, "global_batch_size": 1})


@pytest.mark.parametrize("model", ["hadsell_tiny", "siamese_tiny", "zero_data_tiny"])
def test_a_stored_model_gives_the_same_features(tmp_path: Path, model: str):
    config, _ = compose_config("train", [f"model={model}"])
    parts = build_parts(config)
    entry = describe(settled(config)["model"], parts.tokenizer, EvalTransform(size=32, mean=MEAN, std=STD))
    state = {f"model.{name}": tensor for name, tensor in parts.model.state_dict().items()}
    write(tmp_path / "model.pt", {"state_dict": state, "openslip": entry})
    bundle = openslip.load(tmp_path / "model.pt")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = parts.model.eval().encode_image(images)  # pyright: ignore
        assert torch.equal(bundle.model.encode_image(images), expected)
