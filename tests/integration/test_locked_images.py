"""Features of a locked image tower: what they are, when they are computed, and that a run with them resumes."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_models import Logged, bundle, dual_encoder
from safetensors.torch import load_file
from shard_files import write_pairs
from small_models import small_batch, small_model
from stored_towers import parts_config, write_checkpoint
from trainings import SMALL, Training

import openslip
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.image.locked import LockedImage
from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.objectives.lit import LiT
from openslip.training.callbacks.locked import fill

COUNT = 5
ARCHITECTURE = {"image_tower": {"name": "small"}}


def model() -> Bundle:
    given = replace(bundle(dual_encoder()), architecture=ARCHITECTURE)
    given.model.image_tower.lock()
    return given


def computed(folder: Path, given: Bundle, count: int = COUNT) -> tuple[LockedImage, int]:
    """The view with its features, and how many images were read for it."""
    log = folder.parent / "log"
    log.write_text("")
    view = LockedImage(width=24)
    fill({"image_features": view}, given, Logged(count, log), folder)
    return view, len(log.read_text().split())


def test_the_view_has_what_the_tower_returns_for_the_transformed_images(tmp_path: Path):
    given = model()
    view, _ = computed(tmp_path / "features", given)
    source = Logged(COUNT, tmp_path / "log")
    images = torch.stack([given.transform.read(source[index].image, "image") for index in range(COUNT)])
    with torch.no_grad():
        expected = given.model.image_tower(images)
    assert view.features is not None
    torch.testing.assert_close(view.features, expected, rtol=0, atol=1e-6)


def test_features_are_computed_again_only_if_tower_transform_or_dataset_changes(tmp_path: Path):
    folder, first = tmp_path / "features", model()
    assert computed(folder, first)[1] == COUNT
    other_rest = model()
    with torch.no_grad():
        other_rest.model.image_projection.add_(1)
        other_rest.model.text_tower.token_embedding.weight.add_(1)
    assert computed(folder, other_rest)[1] == 0

    other_weights = model()
    with torch.no_grad():
        next(other_weights.model.image_tower.parameters()).add_(1e-3)
    other_transform = replace(first, transform=EvalTransform(size=16, mean=[0.5] * 3, std=[0.5] * 3))
    other_tower = replace(first, architecture={"image_tower": {"name": "another"}})
    for changed in (other_weights, other_transform, other_tower):
        assert computed(folder, changed)[1] == COUNT
    assert computed(folder, first, COUNT + 1)[1] == COUNT + 1
    assert computed(folder, first)[1] == 0


def test_a_tower_that_is_trained_or_has_another_width_is_refused(tmp_path: Path):
    trained = replace(bundle(dual_encoder()), architecture=ARCHITECTURE)
    with pytest.raises(UserError, match=r"views\.image_features: it needs a locked image tower.*locked=true"):
        computed(tmp_path / "features", trained)
    wide = model()
    wide.model.image_tower.width = 25
    with pytest.raises(UserError, match=r"image_features\.width=24: the image tower's features have width 25"):
        computed(tmp_path / "features", wide)


def test_the_loss_is_clips_with_a_locked_tower():
    model, clip = small_model("clip")
    encoder: Any = model
    encoder.image_tower.lock()
    batch = small_batch(6)
    lit = LiT(gather_with_grad=True, max_logit_scale=4.6052, same_caption="negative", contained_caption="negative")
    expected = clip.terms(encoder, clip.encode(encoder, batch))
    terms = lit.terms(encoder, lit.encode(encoder, {**batch, "image_features": encoder.image_tower(batch["image"])}))
    assert terms["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-12)
    assert terms["clip_acc"] == expected["clip_acc"]
    with torch.no_grad():
        encoder.logit_scale.fill_(7)
    lit.after_step(encoder)
    assert encoder.logit_scale.item() == pytest.approx(4.6052)


def test_a_run_resumes_without_the_towers_file_and_without_stored_features(tmp_path: Path):
    write_pairs(tmp_path / "0.tar", 100)
    tower = write_checkpoint(tmp_path / "earlier.ckpt", parts_config()["model"])
    run = [
        *(
            *SMALL,
            "model=clip_tiny",
            "objective=lit",
            "objective.views.image_features.width=24",
            "data.source.shards=0.tar",
        ),
        *("towers.image.locked=true", "towers.image.weights=earlier.ckpt", "trainer.max_steps=9"),
    ]
    cache = {"OPENSLIP_CACHE": str(tmp_path / "cache")}
    whole = Training(tmp_path, *run, "name=whole", **cache)
    assert whole.wait() == 0, whole.said()
    (stored,) = (tmp_path / "cache" / "features").glob("*.safetensors")
    assert load_file(stored)["features"].shape == (100, 24)
    stopped = Training(tmp_path, *run, "name=stopped", DISTURB="signal 5 0", log="stopped", **cache)
    assert stopped.wait() == 143, stopped.said()
    assert "images:" not in stopped.said()
    (tmp_path / "earlier.ckpt").unlink()
    shutil.rmtree(tmp_path / "cache")
    again = Training(tmp_path, *run, "name=stopped", log="again", **cache)
    assert again.wait() == 0, again.said()
    runs = [str(tmp_path / "runs" / name) for name in ("whole", "stopped")]
    first, second = (openslip.load(path).model.state_dict() for path in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["image_tower.trunk.pos_embed"], tower["image_tower.trunk.pos_embed"])
