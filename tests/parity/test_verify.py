import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference_folder import OTHER_DIMS, unpack_published, write_folder

from openslip.errors import UserError
from openslip.verify import compare, verify
from openslip.verify.deviation import Row
from openslip.verify.ranks import rank_rows
from openslip.verify.recording import find_driven, read_run, train
from openslip.verify.runs import run_rows
from openslip.verify.tables import official_rows, schedule_rows, tokenizer_rows
from openslip.verify.zero_shot import zero_shot_rows

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    unpack_published(DATA / "published", folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    captions = json.loads((DATA / "tokenizer.json").read_text())
    write_folder(folder, dims=OTHER_DIMS, seed=3, num_batches=3, steps=5, captions=captions)
    return folder


def out_of_tolerance(rows: list[Row]) -> set[str]:
    return {row.quantity for row in rows if not row.ok}


def test_we_compute_what_the_published_code_computed(published: Path, capsys: pytest.CaptureFixture[str]):
    assert verify(published, "cpu", "float32") == 0
    printed = capsys.readouterr().out
    assert "76 of 76 quantities within tolerance" in printed
    assert "skipped" not in printed


def test_a_folder_of_other_dims_seeds_and_hyperparameters_agrees(other: Path):
    rows = compare(other, "cpu", "float64")
    assert out_of_tolerance(rows) == set()
    assert len(rows) == 76


def test_rounding_to_bfloat16_is_within_its_stated_tolerance(other: Path):
    for method in ("clip", "slip", "simclr"):
        assert out_of_tolerance(run_rows(other, method, "cpu", "bfloat16")) == set()


def test_the_zero_gradient_list_is_what_the_mathematics_says(published: Path):
    run = read_run(published, "simclr")
    driven = find_driven(run, train(run, "cpu", "float64"))
    found = {name: mask for name, mask in driven.zero.items() if mask.any()}
    width = run.dims["vision_width"]
    for block in range(2):  # softmax does not see a constant added to all logits of a query
        keys = found.pop(f"visual.blocks.{block}.attn.qkv.bias")
        assert keys.nonzero()[0].tolist() == list(range(width, 2 * width))
    # Batch norm subtracts a constant added to its input, be it through the last norm's bias.
    assert set(found) == {"image_mlp.layer1.bias", "image_mlp.layer2.bias", "visual.norm.bias"}
    assert all(mask.all() for mask in found.values())
    shifted = {name for name, reach in driven.reach.items() if reach.any()} - set(driven.zero)
    assert shifted == {"image_mlp.bn1.running_mean", "image_mlp.bn2.running_mean"}


def plant_in_array(folder: Path, file: str, key: str) -> None:
    with np.load(folder / file) as arrays:
        content = {name: arrays[name] for name in arrays.files}
    array = content[key]
    if array.dtype.kind == "i":
        array = array.copy()
        array.flat[1] += 1
    assert array.any()
    content[key] = array if array.dtype.kind == "i" else (array * 1.01).astype(array.dtype)
    np.savez(folder / file, allow_pickle=False, **content)


def plant_in_json(folder: Path, file: str, change: Callable[[dict], None]) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def scale(*keys: str | int) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        place: dict | list = content
        for key in keys[:-1]:
            place = place[key]  # pyright: ignore[reportArgumentType, reportCallIssue]
        value = place[keys[-1]]  # pyright: ignore[reportArgumentType, reportCallIssue]
        assert value
        place[keys[-1]] = value + 1 if isinstance(value, int) else value * 1.01  # pyright: ignore

    return change


@pytest.mark.parametrize(
    ("method", "key", "quantity"),
    [
        ("clip", "init/visual.pos_embed", "clip: outputs"),
        ("clip", "init/logit_scale", "clip: loss terms"),
        ("simclr", "init/image_mlp.layer3.weight", "simclr: outputs"),
        ("clip", "batch0/image", "clip: outputs"),
        ("clip", "batch1/image", "clip, 5 steps: final state by tensor"),
        ("clip", "batch2/text", "clip, 5 steps: final state by tensor"),
        ("slip", "batch1/aug1", "slip, 5 steps: final state by tensor"),
        ("slip", "out/text_embed", "slip: outputs"),
        ("slip", "out/aug2_embed", "slip: outputs"),
        ("clip", "loss/clip_loss", "clip: loss terms"),
        ("simclr", "loss/ssl_loss", "simclr: loss terms"),
        ("clip", "grad/visual.blocks.0.attn.qkv.weight", "clip: gradients by tensor"),
        ("clip", "grad/logit_scale", "clip: gradients by tensor"),
        ("slip", "grad/transformer.resblocks.2.ln_1.bias", "slip: gradients by tensor"),
        ("clip", "final/token_embedding.weight", "clip, 5 steps: final state by tensor"),
        ("slip", "final/visual.blocks.0.attn.qkv.bias", "slip, 5 steps: final state by tensor"),
        ("simclr", "final/image_mlp.bn2.running_var", "simclr, 5 steps: final state by tensor"),
    ],
)
def test_one_per_cent_in_an_array_is_seen(other: Path, tmp_path: Path, method: str, key: str, quantity: str):
    folder = shutil.copytree(other, tmp_path / "planted")
    plant_in_array(folder, f"{method}.npz", key)
    assert quantity in out_of_tolerance(run_rows(folder, method, "cpu", "float32"))


@pytest.mark.parametrize(
    ("change", "quantity"),
    [
        (scale("runs", "slip", "trajectory", 4, "loss"), "slip, 5 steps: loss terms, logit scale"),
        (scale("runs", "slip", "trajectory", 3, "ssl_loss"), "slip, 5 steps: loss terms, logit scale"),
        (scale("runs", "slip", "trajectory", 2, "logit_scale"), "slip, 5 steps: loss terms, logit scale"),
        (scale("runs", "slip", "trajectory", 0, "lr"), "slip, 5 steps: learning rate"),
        (scale("runs", "slip", "hyper", "lr"), "slip, 5 steps: learning rate"),
        (scale("runs", "slip", "hyper", "wd"), "slip, 5 steps: final weights as one vector"),
        (scale("dims", "ssl_temp"), "slip: loss terms"),
        (scale("dims", "ssl_scale"), "slip: loss terms"),
        (scale("dims", "patch"), "slip: dims of the arrays"),
        (scale("dims", "epochs"), "slip, 5 steps: learning rate"),
        (lambda meta: meta["runs"]["slip"]["decay"].pop(), "slip: decayed and undecayed names"),
    ],
)
def test_an_error_in_a_figure_of_a_run_is_seen(other: Path, tmp_path: Path, change: Callable, quantity: str):
    folder = shutil.copytree(other, tmp_path / "planted")
    plant_in_json(folder, "meta.json", change)
    assert quantity in out_of_tolerance(run_rows(folder, "slip", "cpu", "float32"))


def test_an_accuracy_off_by_one_sample_is_seen(other: Path, tmp_path: Path):
    folder = shutil.copytree(other, tmp_path / "planted")

    def change(meta: dict) -> None:
        meta["runs"]["slip"]["trajectory"][4]["ssl_acc"] += 100 / OTHER_DIMS.batch

    plant_in_json(folder, "meta.json", change)
    assert out_of_tolerance(run_rows(folder, "slip", "cpu", "float32")) == {"slip, 5 steps: accuracies (per cent)"}


def test_one_per_cent_on_a_rank_is_seen(other: Path, tmp_path: Path):
    folder = shutil.copytree(other, tmp_path / "planted")
    plant_in_array(folder, "two_ranks.npz", "clip/rank1/loss/clip_loss")
    plant_in_array(folder, "two_ranks.npz", "slip/grad/visual.cls_token")
    plant_in_array(folder, "simclr.npz", "grad/image_mlp.bn1.weight")
    assert out_of_tolerance(rank_rows(folder, "float32")) == {
        "clip, 2 ranks: loss terms",
        "slip, 2 ranks: gradients by tensor",
        "simclr, 2 ranks, gather_with_grad: gradient of the model",
        "simclr, 2 ranks, gather_with_grad: gradients by tensor",
    }


@pytest.mark.parametrize(
    ("key", "quantity"),
    [
        ("text", "zero-shot: class embeddings"),
        ("images", "zero-shot: logits"),
        ("class_embeddings", "zero-shot: class embeddings"),
        ("logits", "zero-shot: logits"),
        ("probabilities", "zero-shot: probabilities"),
        ("eval_transform_mean", "evaluation transform"),
        ("eval_transform_std", "evaluation transform"),
        ("eval_transform_rows", "evaluation transform"),
    ],
)
def test_one_per_cent_in_zero_shot_is_seen(other: Path, tmp_path: Path, key: str, quantity: str):
    folder = shutil.copytree(other, tmp_path / "planted")
    plant_in_array(folder, "zero_shot.npz", key)
    assert quantity in out_of_tolerance(zero_shot_rows(folder, "cpu", "float32"))


@pytest.mark.parametrize(
    ("file", "rows", "change", "quantity"),
    [
        ("lr_schedules.json", schedule_rows, scale("another_recipe", "points", "7"), "learning-rate tables"),
        ("lr_schedules.json", schedule_rows, scale("another_recipe", "lr_end"), "learning-rate tables"),
        ("tokenizer.json", tokenizer_rows, scale("ids", 11, 2), "token ids"),
        (
            "official_models.json",
            official_rows,
            scale("SLIP_VITS16", "heads"),
            "official models: attention heads",
        ),
        (
            "official_models.json",
            official_rows,
            scale("SLIP_VITS16", "parameters"),
            "official models: parameters",
        ),
        (
            "official_models.json",
            official_rows,
            scale("SIMCLR_VITT16", "state", "image_mlp.bn2.running_var", 0),
            "official models: names and shapes",
        ),
        (
            "official_models.json",
            official_rows,
            lambda models: models["SLIP_VITS16"]["no_decay"].pop(),
            "official models: decayed and undecayed names",
        ),
    ],
)
def test_an_error_in_a_table_is_seen(
    other: Path,
    tmp_path: Path,
    file: str,
    rows: Callable[[Path], list[Row]],
    change: Callable[[dict], None],
    quantity: str,
):
    shutil.copy(other / file, tmp_path)
    plant_in_json(tmp_path, file, change)
    assert out_of_tolerance(rows(tmp_path)) == {quantity}


def test_an_error_is_exit_code_1_and_absent_files_are_skipped(
    other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for file in ("meta.json", "clip.npz", "lr_schedules.json"):
        shutil.copy(other / file, tmp_path)
    assert verify(tmp_path, "cpu", "float32") == 0
    printed = capsys.readouterr().out
    for file in (
        "slip.npz",
        "simclr.npz",
        "two_ranks.npz",
        "zero_shot.npz",
        "official_models.json",
        "tokenizer.json",
    ):
        assert f"skipped  no {file}" in printed
    plant_in_json(tmp_path, "lr_schedules.json", scale("another_recipe", "points", "14"))
    assert verify(tmp_path, "cpu", "float32") == 1
    assert "another_recipe at step 14" in capsys.readouterr().out


def test_a_folder_that_does_not_fit_together_is_a_finding(other: Path, tmp_path: Path):
    shutil.copy(other / "clip.npz", tmp_path)
    shutil.copy(other / "meta.json", tmp_path)
    plant_in_json(tmp_path, "meta.json", scale("dims", "vision_heads"))
    shutil.copy(other / "lr_schedules.json", tmp_path / "tokenizer.json")
    rows = compare(tmp_path, "cpu", "float32")
    assert out_of_tolerance(rows) == {"clip", "token ids"}
    assert any("6 heads do not divide" in row.note for row in rows)


def test_what_cannot_be_verified_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        verify(tmp_path / "missing", "cpu", "float32")
    with pytest.raises(UserError, match="none of the recordings"):
        verify(tmp_path, "cpu", "float32")
    with pytest.raises(UserError, match="dtype='float8'"):
        verify(tmp_path, "cpu", "float8")
    with pytest.raises(UserError, match="tf32"):
        verify(tmp_path, "cpu", "tf32")


def test_the_nine_published_models_have_the_parameters_of_the_paper_code():
    with gzip.open(DATA / "published" / "official_models.json.gz") as file:
        recorded = json.loads(file.read())
    counts = {name: model["parameters"] for name, model in recorded.items()}
    assert counts["SLIP_VITB16"] == 170_616_321
    assert len(counts) == 9
