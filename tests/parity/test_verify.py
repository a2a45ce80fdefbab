import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pack_recordings import FILES, pack
from reference_folder import METHODS, OTHER_DIMS, write_folder

from openslip.__main__ import run as openslip
from openslip.errors import UserError
from openslip.verify import compare, verify
from openslip.verify.deviation import TOLERANCES, Row
from openslip.verify.files import RECORDINGS, packed, read_arrays, read_json
from openslip.verify.ranks import compare_ranks, repeat_on_ranks
from openslip.verify.recording import Run, find_driven, loss_rounding, read_run, train
from openslip.verify.runs import Repeated, compare_run, repeat_run, run_rows
from openslip.verify.tables import official_rows, schedule_rows, tokenizer_rows
from openslip.verify.zero_shot import zero_shot_rows


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    captions = read_json(RECORDINGS / "tokenizer.json")
    write_folder(folder, dims=OTHER_DIMS, seed=3, num_batches=3, steps=5, captions=captions)
    return folder


@pytest.fixture(scope="module")
def repeated(other: Path) -> dict[str, tuple[Run, Repeated]]:
    runs = {method: read_run(other, method) for method in METHODS}
    return {method: (run, repeat_run(run, "cpu", "float32")) for method, run in runs.items()}


def out_of_tolerance(rows: list[Row]) -> set[str]:
    return {row.quantity for row in rows if not row.ok}


def test_we_compute_what_the_published_code_computed(capsys: pytest.CaptureFixture[str]):
    assert openslip(["verify"]) == 0
    printed = capsys.readouterr().out
    assert "97 of 97 quantities within tolerance" in printed
    assert "  skipped  " not in printed  # as a row says of itself


def test_a_folder_of_other_dims_seeds_and_hyperparameters_agrees(
    other: Path, repeated: dict[str, tuple[Run, Repeated]]
):
    for run, ours in repeated.values():
        assert out_of_tolerance(compare_run(run, ours, TOLERANCES["float32"])) == set()
    for rows in (schedule_rows(other), official_rows(other), tokenizer_rows(other)):
        assert out_of_tolerance(rows) == set()
    assert out_of_tolerance(zero_shot_rows(other, "cpu", "float64")) == set()


def test_two_ranks_agree_and_one_per_cent_on_a_rank_is_seen(other: Path):
    recorded = read_arrays(other / "two_ranks.npz")
    runs = [read_run(other, method) for method in METHODS]
    ours = repeat_on_ranks(other, runs, 2, "float32")
    rounding = {run.name: loss_rounding(run) for run in runs}
    assert out_of_tolerance(compare_ranks(recorded, runs, ours, rounding, "float32")) == set()
    for key, array in recorded.items():
        zero_gradient = key.endswith(("image_mlp.layer1.bias", "image_mlp.layer2.bias", "simclr/grad/visual.norm.bias"))
        if array.any() and not zero_gradient:
            method = key.split("/")[0]
            planted = recorded | {key: one_per_cent(array)}
            own = [run for run in runs if run.name == method]
            assert out_of_tolerance(compare_ranks(planted, own, ours, rounding, "float32")), key


def test_bfloat16_is_within_its_stated_tolerances(other: Path):
    assert out_of_tolerance(run_rows(other, "slip", "cpu", "bfloat16")) == set()


def test_packed_recordings_are_the_recordings_bit_by_bit(other: Path, tmp_path: Path):
    pack(other, tmp_path)
    for file in FILES:
        (there, here) = (read_arrays(folder / f"{file}.npz") for folder in (other, tmp_path))
        assert list(there) == list(here)
        for key, array in there.items():
            assert (array.dtype, array.shape) == (here[key].dtype, here[key].shape)
            assert array.tobytes() == here[key].tobytes(), key
        assert packed(tmp_path / f"{file}.npz").stat().st_size < (other / f"{file}.npz").stat().st_size
    assert read_json(tmp_path / "official_models.json") == read_json(other / "official_models.json")


def test_the_zero_gradient_list_is_what_the_mathematics_says():
    run = read_run(RECORDINGS, "simclr")
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


def one_per_cent(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "i":
        array = array.copy()
        array.flat[min(1, array.size - 1)] += 1
        return array
    return np.asarray(array * 1.01, dtype=array.dtype)


def test_one_per_cent_in_any_recorded_result_is_seen(repeated: dict[str, tuple[Run, Repeated]]):
    num_planted = 0
    for run, ours in repeated.values():
        for key, array in run.arrays.items():
            group, name = key.split("/")
            # What rounding drives as a whole cannot be held against anything: the zero-gradient list.
            driven = ours.driven.reach[name].all() if name in ours.driven.reach else False
            if group in ("out", "loss", "grad", "final") and array.any() and not driven:
                planted = replace(run, arrays=run.arrays | {key: one_per_cent(array)})
                found = out_of_tolerance(compare_run(planted, ours, TOLERANCES["float32"]))
                expected = {"out": "outputs", "loss": "loss|accuracies", "grad": "gradient", "final": "final"}[group]
                assert any(re.search(expected, quantity) for quantity in found), key
                num_planted += 1
    assert num_planted > 300


def test_one_per_cent_in_any_figure_of_a_trajectory_is_seen(repeated: dict[str, tuple[Run, Repeated]]):
    for run, ours in repeated.values():
        for step, entry in enumerate(run.trajectory):
            for key, value in entry.items():
                steps = [dict(figures) for figures in run.trajectory]
                steps[step][key] = value * 1.01
                planted = replace(run, trajectory=steps)
                found = out_of_tolerance(compare_run(planted, ours, TOLERANCES["float32"]))
                assert found or value == 0, (run.name, step, key)


def test_a_name_in_the_wrong_group_is_seen(repeated: dict[str, tuple[Run, Repeated]]):
    run, ours = repeated["slip"]
    planted = replace(run, decay=run.decay[1:], no_decay=[*run.no_decay, run.decay[0]])
    found = out_of_tolerance(compare_run(planted, ours, TOLERANCES["float32"]))
    assert found == {"slip: decayed and undecayed names"}


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("clip", "init/visual.pos_embed"),
        ("clip", "init/logit_scale"),
        ("simclr", "init/image_mlp.layer3.weight"),
        ("simclr", "init/image_mlp.bn2.running_var"),
        ("simclr", "batch2/aug1"),
        ("clip", "batch0/image"),
        ("clip", "batch1/image"),
        ("clip", "batch2/text"),
    ],
)
def test_one_per_cent_in_what_we_start_from_is_seen(other: Path, method: str, key: str):
    run = read_run(other, method)
    planted = replace(run, arrays=run.arrays | {key: one_per_cent(run.arrays[key])})
    assert out_of_tolerance(compare_run(planted, repeat_run(planted, "cpu", "float32"), TOLERANCES["float32"]))


@pytest.mark.parametrize(
    ("group", "key"),
    [("hyper", "lr"), ("hyper", "wd"), ("dims", "ssl_temp"), ("dims", "epochs"), ("dims", "patch"), ("dims", "batch")],
)
def test_one_per_cent_in_a_hyperparameter_is_seen(other: Path, group: str, key: str):
    run = read_run(other, "slip")
    value = getattr(run, group)[key]
    changed = {**getattr(run, group), key: value + 1 if isinstance(value, int) else value * 1.01}
    planted = replace(run, dims=changed) if group == "dims" else replace(run, hyper=changed)
    assert out_of_tolerance(compare_run(planted, repeat_run(planted, "cpu", "float32"), TOLERANCES["float32"]))


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
    for file in ("meta.json", "clip.npz"):
        shutil.copy(other / file, tmp_path)
    recorded = read_arrays(other / "zero_shot.npz")
    np.savez(tmp_path / "zero_shot.npz", allow_pickle=False, **recorded | {key: one_per_cent(recorded[key])})
    assert quantity in out_of_tolerance(zero_shot_rows(tmp_path, "cpu", "float32"))


@pytest.mark.parametrize(
    ("file", "rows", "change", "quantity"),
    [
        ("lr_schedules.json", schedule_rows, scale("another_recipe", "points", "7"), "learning-rate tables"),
        ("lr_schedules.json", schedule_rows, scale("another_recipe", "lr_end"), "learning-rate tables"),
        ("tokenizer.json", tokenizer_rows, scale("ids", 11, 2), "token ids"),
        ("official_models.json", official_rows, scale("SLIP_VITS16", "heads"), "official models: attention heads"),
        ("official_models.json", official_rows, scale("SLIP_VITS16", "parameters"), "official models: parameters"),
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
    for file in ("slip.npz", "simclr.npz", "two_ranks.npz", "zero_shot.npz", "official_models.json", "tokenizer.json"):
        assert f"skipped  no {file}" in printed
    plant_in_json(tmp_path, "lr_schedules.json", scale("another_recipe", "points", "14"))
    assert verify(tmp_path, "cpu", "float32") == 1
    assert "another_recipe at step 14" in capsys.readouterr().out


def test_a_folder_that_does_not_fit_together_is_a_finding(other: Path, tmp_path: Path):
    shutil.copy(other / "clip.npz", tmp_path)
    shutil.copy(other / "meta.json", tmp_path)
    plant_in_json(tmp_path, "meta.json", lambda meta: meta["dims"].update(vision_heads=7))
    shutil.copy(other / "lr_schedules.json", tmp_path / "tokenizer.json")
    rows = compare(tmp_path, "cpu", "float32")
    assert out_of_tolerance(rows) == {"clip", "token ids"}
    assert any("not divisible by 7 heads" in row.note for row in rows)


def test_what_cannot_be_verified_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        verify(tmp_path / "missing", "cpu", "float32")
    with pytest.raises(UserError, match="none of the recordings"):
        verify(tmp_path, "cpu", "float32")
    with pytest.raises(UserError, match="device=abacus is not available"):
        verify(tmp_path, "abacus", "float32")
    with pytest.raises(UserError, match="tf32"):
        verify(tmp_path, "cpu", "tf32")


def test_the_nine_published_models_have_the_parameters_of_the_paper_code():
    counts = {name: model["parameters"] for name, model in read_json(RECORDINGS / "official_models.json").items()}
    assert counts["SLIP_VITB16"] == 170_616_321
    assert len(counts) == 9
