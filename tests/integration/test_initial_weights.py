"""A run starts as the whole model of a checkpoint, at another size of images or texts too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_files import write_pairs
from trainings import SMALL, Training

from openslip.config.build import Parts, build_parts, settled
from openslip.config.compose import compose_config
from openslip.data.image.eval_transform import EvalTransform
from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.inference.files import read
from openslip.inference.formats.openslip import write
from openslip.inference.load import load
from openslip.models.batch_norm import mixes_samples
from openslip.run.checkpoints import newest_whole
from openslip.training.initial_weights import InitialWeights

TINY = [word for word in SMALL if word.startswith("model.")]
TRANSFORM: dict[str, Any] = {"size": 32, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
NO_TOWERS = {"image": {"weights": None}, "text": {"weights": None}}


def parts_of(*words: str) -> Parts:
    return build_parts(settled(compose_config("train", [*TINY, *words])[0]))


def checkpoint(path: Path, *words: str) -> dict[str, torch.Tensor]:
    """A stripped file of a model with weights of its own, which are returned."""
    config = settled(compose_config("train", [*TINY, *words])[0])
    torch.manual_seed(7)
    parts = build_parts(config)
    with torch.no_grad():  # norms' biases too: nothing that a new model has as well
        for parameter in parts.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    size = config["image_size"]
    transform = EvalTransform(**TRANSFORM | {"size": size})
    write(Bundle(parts.model, parts.tokenizer, transform, config["model"], torch.device("cpu")), path)
    return {name: tensor.clone() for name, tensor in parts.model.state_dict().items()}


def start(parts: Parts, path: Path, resize: bool = False, **transform: Any) -> InitialWeights:
    initial = InitialWeights(parts.model, parts.tokenizer, TRANSFORM | transform, resize=resize)
    initial.load(str(path), NO_TOWERS)
    return initial


def test_init_from_copies_towers_projections_and_temperature(tmp_path: Path):
    there = checkpoint(tmp_path / "a.ckpt")
    parts = parts_of()
    head = {name: tensor.clone() for name, tensor in parts.objective.state_dict().items()}
    initial = start(parts, tmp_path / "a.ckpt")
    for name, tensor in parts.model.state_dict().items():
        assert torch.equal(tensor, there[name]), name
    assert {"logit_scale", "image_projection", "text_projection"} < there.keys()
    assert all(torch.equal(tensor, head[name]) for name, tensor in parts.objective.state_dict().items())
    assert initial.notices == []
    assert initial.record == {"checkpoint": str(tmp_path / "a.ckpt")}


RESNET = [
    *("image_size=64", "+model.projects_image=false", "model.embed_dim=8"),
    "~model.image_tower",
    "+model.image_tower={_target_:openslip.models.clip_resnet.ClipResNet,image_size:64,depths:[1,1,1,1],channels:4,"
    "width:8,heads:2}",
]


def test_a_frozen_resnet_keeps_the_weights_and_statistics_of_the_checkpoint(tmp_path: Path):
    words = [*(word for word in TINY if "image_tower" not in word), *RESNET]
    config = settled(compose_config("train", words)[0])
    torch.manual_seed(7)
    trained = build_parts(config)
    model: Any = trained.model
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.image_tower.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    settings: dict[str, Any] = TRANSFORM | {"size": 64}
    transform = EvalTransform(**settings)
    write(
        Bundle(trained.model, trained.tokenizer, transform, config["model"], torch.device("cpu")), tmp_path / "a.ckpt"
    )
    images = torch.rand(5, 3, 64, 64)
    expected = model.eval().encode_image(images)

    locked = ["towers.image.locked=true", f"init_from.checkpoint={tmp_path}/a.ckpt"]
    parts = build_parts(settled(compose_config("train", [*words, *locked])[0]))
    start(parts, tmp_path / "a.ckpt", size=64)
    frozen: Any = parts.model
    frozen.train()
    assert not any(map(mixes_samples, frozen.image_tower.modules())), "so that it allows micro-batches"
    assert not any(parameter.requires_grad for parameter in frozen.image_tower.parameters())
    for rows in (images, images[:1]):
        torch.testing.assert_close(frozen.encode_image(rows), expected[: len(rows)], rtol=1e-5, atol=1e-6)
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], tensor), name
    assert any("running_var" in name for name in parts.model.state_dict())


def test_a_logit_bias_is_copied_and_one_that_the_checkpoint_lacks_starts_anew(tmp_path: Path):
    there = checkpoint(tmp_path / "biased.ckpt", "+model.logit_bias_init=-10.0")
    biased = parts_of("+model.logit_bias_init=-3.0")
    start(biased, tmp_path / "biased.ckpt")
    assert biased.model.get_parameter("logit_bias").item() == there["logit_bias"].item() != -3
    checkpoint(tmp_path / "plain.ckpt")
    biased = parts_of("+model.logit_bias_init=-3.0")
    initial = start(biased, tmp_path / "plain.ckpt")
    assert biased.model.get_parameter("logit_bias").item() == -3
    assert len(initial.notices) == 1
    assert "it has no logit_bias" in initial.notices[0]
    with pytest.raises(UserError, match="only the checkpoint has logit_bias"):
        start(parts_of(), tmp_path / "biased.ckpt")


def test_position_embeddings_are_interpolated_bicubic_and_antialiased_only_when_asked(tmp_path: Path):
    there = checkpoint(tmp_path / "a.ckpt", "image_size=32", "tokenizer.context_length=32")
    words = ("image_size=64", "tokenizer.context_length=20")
    with pytest.raises(UserError, match=r"has image_size 32, and this run has 64: set init_from\.resize=true"):
        start(parts_of(*words), tmp_path / "a.ckpt", size=64)
    parts = parts_of(*words)
    initial = start(parts, tmp_path / "a.ckpt", resize=True, size=64)
    image, text = "image_tower.trunk.pos_embed", "text_tower.positional_embedding"
    old, new = there[image][0].double().numpy(), parts.model.state_dict()[image][0].numpy()
    side, wanted = round((len(old) - 1) ** 0.5), round((len(new) - 1) ** 0.5)
    assert wanted == 2 * side
    np.testing.assert_array_equal(new[0], there[image][0, 0])  # the class token has no place
    along = matrix(side, wanted)
    grid = np.einsum("ai,bj,ijc->abc", along, along, old[1:].reshape(side, side, -1))
    np.testing.assert_allclose(new[1:], grid.reshape(wanted * wanted, -1), atol=1e-6)
    np.testing.assert_allclose(parts.model.state_dict()[text], matrix(32, 20) @ there[text].double().numpy(), atol=1e-6)
    assert initial.record["resized"] == {"image_tower.image_size": [32, 64], "text_tower.context_length": [32, 20]}
    assert any("interpolated from image_size 32 to 64" in notice for notice in initial.notices)
    for name in there.keys() - {image, text}:
        assert torch.equal(parts.model.state_dict()[name], there[name]), name


def matrix(old: int, new: int) -> np.ndarray:
    """Bicubic interpolation (a = -0.5) with its kernel widened where it shrinks, as Pillow does it, in float64."""
    ratio = old / new
    width = max(ratio, 1.0)
    rows = np.zeros((new, old))
    for place in range(new):
        centre = (place + 0.5) * ratio
        for source in range(old):
            x = abs((source + 0.5 - centre) / width)
            if x < 1:
                rows[place, source] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                rows[place, source] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return rows / rows.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("changed", "tower"),
    [
        ("model.image_tower.arguments.num_heads=2", "image"),
        ("model.text_tower.heads=2", "text"),
        ("+model.text_tower.activation=gelu", "text"),
        ("+model.text_tower.norm_eps=0.1", "text"),
        ("+model.text_tower.pooling=mean", "text"),
        ("+model.text_tower.causal=false", "text"),
    ],
)
def test_what_shapes_do_not_show_is_compared(tmp_path: Path, changed: str, tower: str):
    deep = "model.text_tower.depth=2"  # the last token of one block sees its whole caption, causal or not
    checkpoint(tmp_path / "a.ckpt", deep)
    with pytest.raises(UserError, match=rf"its {tower} tower gives other outputs than this run's tower"):
        start(parts_of(changed, deep), tmp_path / "a.ckpt")
    initial = InitialWeights((parts := parts_of(changed, deep)).model, parts.tokenizer, TRANSFORM)
    with pytest.raises(UserError, match=rf"towers\.{tower}\.weights=.*gives other outputs than this run's tower"):
        initial.load(None, {tower: {"weights": str(tmp_path / "a.ckpt")}})


def test_other_colours_and_another_truncation_are_said(tmp_path: Path):
    checkpoint(tmp_path / "a.ckpt", "tokenizer.truncation=drop_end")
    initial = start(parts_of("tokenizer.truncation=keep_end"), tmp_path / "a.ckpt", std=[0.5, 0.5, 0.5])
    said = " | ".join(initial.notices)
    assert "trained with std=[0.229, 0.224, 0.225]; this run has std=[0.5, 0.5, 0.5]" in said
    assert "trained with tokenizer.truncation=drop_end; this run has keep_end" in said


def test_images_that_are_resized_in_another_way_are_said(tmp_path: Path):
    config = settled(compose_config("train", TINY)[0])
    parts = build_parts(config)
    transform = EvalTransform(**TRANSFORM, interpolation="bicubic", resize_to=40, crop="floor")
    file = tmp_path / "a.ckpt"
    write(Bundle(parts.model, parts.tokenizer, transform, config["model"], torch.device("cpu")), file)
    said = start(parts_of(), file).notices
    assert [notice.removeprefix(f"init_from.checkpoint={file}: it was trained with ") for notice in said] == [
        "interpolation=bicubic; this run has interpolation=bilinear",
        "resize_to=40; this run has resize_to=None",
        "crop=floor; this run has crop=round",
    ]
    assert start(parts_of(), file, interpolation="bicubic", resize_to=40, crop="floor").notices == []
    squashed = EvalTransform(**TRANSFORM, resize="squash")
    write(Bundle(parts.model, parts.tokenizer, squashed, config["model"], torch.device("cpu")), file)
    assert "resize=squash; this run has resize=shortest" in start(parts_of(), file).notices[0]


def test_a_checkpoint_of_another_kind_of_model_is_refused_with_the_keys(tmp_path: Path):
    config = settled(compose_config("train", ["model=simclr_tiny"])[0])
    model = build_parts(config).model
    transform = EvalTransform(**TRANSFORM)
    write(Bundle(model, None, transform, config["model"], torch.device("cpu")), tmp_path / "simclr.ckpt")
    with pytest.raises(UserError, match=r"another kind of model \(only this run has .*towers\.image\.weights="):
        start(parts_of(), tmp_path / "simclr.ckpt")


def test_a_fine_tuned_run_starts_with_the_checkpoint_s_features_and_records_it(tmp_path: Path):
    write_pairs(tmp_path / "0.tar", 100)
    checkpoint(tmp_path / "earlier.ckpt", "image_size=32")
    still = [*(f"optim.schedule.{key}=1e-12" for key in ("lr_start", "lr", "lr_end")), "optim.weight_decay=0"]
    run = [*SMALL, "data.source.shards=0.tar", "image_size=64", *still]
    first = [*run, "init_from.checkpoint=earlier.ckpt", "init_from.resize=true", "name=tuned", "trainer.max_steps=4"]
    stopped = Training(tmp_path, *first, DISTURB="signal 2 0")
    assert stopped.wait() == 143, stopped.said()
    (tmp_path / "earlier.ckpt").rename(tmp_path / "moved.ckpt")  # a resumed run does not need it
    resumed = Training(tmp_path, *first)
    assert resumed.wait() == 0, resumed.said()
    entry = read(newest_whole(tmp_path / "runs" / "tuned" / "checkpoints").path)["openslip"]
    assert entry["init_from"] == {"checkpoint": "earlier.ckpt", "resized": {"image_tower.image_size": [32, 64]}}
    tuned, earlier = load(tmp_path / "runs" / "tuned"), load(tmp_path / "moved.ckpt")
    torch.testing.assert_close(
        tuned.encode_text(["a red ring"]), earlier.encode_text(["a red ring"]), rtol=0, atol=1e-5
    )
