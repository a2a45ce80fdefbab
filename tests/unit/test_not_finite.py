"""Weights that are not finite give an error that names checkpoint and tower, and no number."""

from pathlib import Path

import pytest
import torch
from evaluation_models import Pictures, bundle, dual_encoder, image_encoder, knn, zero_shot

from openslip.errors import NonFiniteError
from openslip.inference.bundle import Bundle
from openslip.inference.classifier import ZeroShotClassifier
from openslip.inference.formats.openslip import write
from openslip.inference.load import load
from openslip.training.initial_weights import InitialWeights

IMAGE, TEXT = "image_tower.trunk.norm.weight", "text_tower.ln_final.weight"


def damaged(name: str, value: float) -> Bundle:
    model = dual_encoder()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    good = bundle(model)
    return Bundle(good.model, good.tokenizer, good.transform, good.architecture, good.device, "runs/bad")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("name", "tower"), [(IMAGE, "image"), (TEXT, "text"), ("image_projection", "image"), ("text_projection", "text")]
)
def test_zero_shot_and_classifier_name_checkpoint_tower_and_weight(name: str, tower: str, value: float):
    message = f"checkpoint runs/bad: its {tower} features are not finite .*in {name}"
    with pytest.raises(NonFiniteError, match=message):
        zero_shot(Pictures(3)).run(damaged(name, value))
    with pytest.raises(NonFiniteError, match=message):
        ZeroShotClassifier(damaged(name, value), ["cat", "dog"])(Pictures(1)[0].image)


def test_nearest_neighbours_name_the_image_tower_and_need_no_other():
    with pytest.raises(NonFiniteError, match=f"runs/bad: its image features are not finite .*in {IMAGE}"):
        knn(Pictures(9), Pictures(3)).run(damaged(IMAGE, float("nan")))
    assert knn(Pictures(9), Pictures(3)).run(damaged(TEXT, float("nan")))["num_samples"] == 3


def test_finite_weights_whose_features_overflow_are_refused():
    model = damaged("image_projection", 0.0)
    model.model.image_projection.data.fill_(1e30)
    with pytest.raises(NonFiniteError, match=r"image features are not finite \(its weights are finite but too large"):
        zero_shot(Pictures(3)).run(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 100.0])
def test_a_scale_that_is_not_finite_is_refused(value: float):
    model = damaged("logit_scale", value)
    for attempt in (lambda: zero_shot(Pictures(3)).run(model), lambda: ZeroShotClassifier(model, ["cat", "dog"])):
        with pytest.raises(NonFiniteError, match=r"checkpoint runs/bad: exp\(logit_scale\) is (nan|inf)"):
            attempt()


def test_a_bias_that_is_not_finite_is_refused():
    model = damaged("logit_scale", 1.0)
    model.model.logit_bias = torch.nn.Parameter(torch.tensor(float("nan")))
    with pytest.raises(NonFiniteError, match="logit_bias is nan"):
        ZeroShotClassifier(model, ["cat", "dog"], probabilities="sigmoid")


def test_a_loaded_model_is_named_by_its_file_and_one_in_training_by_its_class(tmp_path: Path):
    model = image_encoder()
    model.get_parameter(IMAGE).data[0] = float("nan")
    arguments = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    tower = {"_target_": "openslip.models.timm_tower.TimmTower", "name": "vit_small_patch16_224", "image_size": 16}
    architecture = {
        "_target_": "openslip.models.image_encoder.ImageEncoder",
        "image_tower": {**tower, "arguments": arguments},
    }
    good, file = bundle(model), tmp_path / "bad.pt"
    write(Bundle(model, None, good.transform, architecture, good.device), file)
    with pytest.raises(NonFiniteError, match=f"checkpoint {file}: its image features"):
        load(file).encode_image([Pictures(1)[0].image])
    with pytest.raises(NonFiniteError, match=r"^ImageEncoder: its image features"):
        good.encode_image([Pictures(1)[0].image])
    initial = InitialWeights(image_encoder(), None, good.transform.settings())
    with pytest.raises(NonFiniteError, match=f"towers.image.weights={file}: its image tower has NaN or infinite"):
        initial.load(None, {"image": {"weights": str(file)}})
    with pytest.raises(NonFiniteError, match=f"init_from.checkpoint={file} has NaN or infinite values in image_tower"):
        initial.load(str(file), {})
