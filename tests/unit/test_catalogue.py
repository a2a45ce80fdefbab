"""`openslip models` and `openslip data list`: what the configs offer, what is on disk, and which runs there are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from marks import slow
from shard_files import write_pairs

import openslip
from openslip.__main__ import run
from openslip.commands.models import TAIL, last_metrics, state
from openslip.config.build import build, settled
from openslip.config.catalogue import datasets, described, fetched_licences, header, models
from openslip.config.compose import compose_config
from openslip.config.folder import config_folder, names
from openslip.config.obtain import obtainable


@pytest.mark.parametrize("words", [["models"], ["data", "list"], ["models", "--help"], ["data", "list", "--help"]])
def test_listing_imports_nothing_slow(words: list[str], tmp_path: Path):
    code = (
        "import sys; from openslip.__main__ import run; assert run(sys.argv[1:]) == 0; "
        "slow = {'torch', 'timm', 'hydra', 'numpy', 'shtab'} | ({'yaml'} if sys.argv[1:] != ['models'] else set()); "
        "assert not slow & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(openslip.__file__).parents[1])}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("size", ["tiny", slow("vits16"), "vitb16", slow("vitl16"), slow("vitb32"), slow("rn50")])
def test_the_parameters_in_the_configs_are_those_of_the_towers(size: str):
    config = settled(compose_config("train", [f"model=clip_{size}"])[0])
    with torch.device("meta"):
        model = build(config["model"], "model")
    towers = (model.image_tower, model.text_tower)
    counts = [f"{sum(p.numel() for p in tower.parameters()) / 1e6:.1f} M" for tower in towers]
    for name, expected in (("clip", counts), ("slip", counts), ("simclr", counts[:1])):
        assert described(f"{name}_{size}", [config_folder()]).parameters == " + ".join(expected)


def test_all_models_are_listed_with_a_meaning(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "size").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# @package _global_\n# My model.\n# With 7 M parameters.\nseed: 1\n")
    (tmp_path / "size" / "small.yaml").write_text("# @package _global_\nimage_size: 64\n")
    folders = [config_folder(), tmp_path]
    listed = {model.name: model for model in models(folders)}
    assert [*listed] == names("model", folders)
    assert listed["mine"] == ("mine", "7 M", "My model. With 7 M parameters.")
    assert listed["clip_small"] == ("clip_small", "", "CLIP")
    assert listed["slip_vitb16"].meaning == "SLIP: ViT-B/16 of published SLIP."


def test_a_header_ends_at_the_first_line_that_is_no_comment(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("# @package _global_\n# One,\n# two.\ndefaults:\n# three\n")
    assert header(tmp_path / "a.yaml") == "One, two."


def test_datasets_are_present_if_their_shards_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cc3m").mkdir()
    for number in range(2):
        write_pairs(tmp_path / "cc3m" / f"{number}.tar", 1)
    (tmp_path / "coco").mkdir()
    monkeypatch.setenv("OPENSLIP_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # the built-in dataset is looked for in data/ of the current folder
    configs = tmp_path / "configs"
    for name, shards in (
        ("far", "s3://bucket/{0..9}.tar"),
        ("pattern", "a/{0..9}.tar"),
        ("near", str(tmp_path / "cc3m")),
    ):
        (configs / "data" / "source").mkdir(parents=True, exist_ok=True)
        (configs / "data" / f"{name}.yaml").write_text(f"defaults:\n  - webdataset\n  - override source: {name}\n")
        (configs / "data" / "source" / f"{name}.yaml").write_text(f"defaults: [shards]\nshards: {shards}  # mine\n")
    folders = [config_folder(), configs]
    listed = {dataset.name: dataset for dataset in datasets(folders)}
    assert [*listed] == names("data", folders)
    states = {name: dataset.state() for name, dataset in listed.items()}
    assert states == {
        "cc3m": "2 shards",
        "near": "2 shards",
        "far": "not checked",
        "pattern": "not checked",
        "webdataset": "you name it",
        **dict.fromkeys(
            ("builtin", "cc12m", "coco", "mixture", "openclipart", "redcaps", "yfcc15m", "yfcc15m_v2"), "absent"
        ),
    }
    assert listed["mixture"].places == (f"{tmp_path}/cc3m", f"{tmp_path}/cc12m")
    assert listed["cc12m"].meaning.startswith("Conceptual 12M")


def test_the_list_states_the_licence_of_what_is_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["data", "list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for name, licence in (("openclipart", "public domain"), ("efficientnet_lite0", "Apache"), ("glove_6b_50d", "PDDL")):
        assert any(line.split()[:1] == [name] and licence in line for line in printed)


def test_an_empty_folder_is_no_dataset(tmp_path: Path):
    entry = next(entry for entry in obtainable([config_folder()]) if entry.folder)
    folder = tmp_path / str(entry.folder)
    assert entry.state(tmp_path) == "fetchable"
    folder.mkdir()
    assert entry.state(tmp_path) == "fetchable"
    (folder / "0.tar").touch()
    assert entry.state(tmp_path) == "present"


def test_the_licences_are_those_of_the_catalogue():
    folders = [config_folder()]
    expected = {entry.name: entry.licence for entry in obtainable(folders) if entry.fetcher}
    assert len(expected) > 10
    assert fetched_licences(folders) == expected


def test_the_dataset_of_each_config_is_looked_for_where_training_reads_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENSLIP_DATA", "/somewhere")
    for dataset in datasets([config_folder()]):
        if dataset.places and dataset.name != "mixture":
            source = compose_config("train", [f"data={dataset.name}"])[0]["data"]["source"]
            assert dataset.places == (source.get("shards") or source["root"],)


def test_runs_are_listed_with_step_and_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("done", "going", "new", "damaged", "no_run"):
        (tmp_path / name).mkdir()
        if name != "no_run":
            (tmp_path / name / "config.yaml").touch()
    lines = ["data: 3 bad samples were replaced: x", "zero-shot top-1: 79.7 %", "report: runs/done/report.html"]
    (tmp_path / "done" / "result.json").write_text(json.dumps({"step": 30, "metrics": {}, "lines": lines}))
    (tmp_path / "going" / "metrics.csv").write_text("step,train/loss,eval/a/acc\n10,3.2,\n20,2.1,50.5\n30,1.23456,\n")
    (tmp_path / "damaged" / "result.json").write_text("[")
    (tmp_path / "damaged" / "metrics.csv").write_text("step,train/loss\n10,3.2\n20,1")
    assert run(["models", "--runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    shown = [line.split(maxsplit=1) for line in printed[printed.index(f"runs in {tmp_path}:") + 1 :]]
    assert shown == [
        ["damaged", "unfinished, step 20, train/loss 1.0"],
        ["done", "finished at step 30: zero-shot top-1: 79.7 %"],
        ["going", "unfinished, step 30, eval/a/acc 50.5"],
        ["new", "unfinished, no metrics yet"],
    ]


def test_published_checkpoints_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["models", "--runs", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    repository = "facebookresearch/SLIP (MIT)"
    slip = f"slip_base_100ep SLIP ViT-B/16, 224 px, YFCC15M 100 epochs, 45.0/73.6/83.4 %, ~2.0 GB, {repository}"
    simclr = f"simclr_small_25ep SimCLR ViT-S/16, 224 px, YFCC15M 25 epochs, -/58.1/79.9 %, ~0.5 GB, {repository}"
    assert slip in lines
    assert simclr in lines
    assert sum(line.endswith(repository) for line in lines) == 19


def test_a_folder_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["models", "--runs", str(tmp_path / "none")]) == 0
    assert f"runs in {tmp_path}/none: none" in capsys.readouterr().out


def test_only_the_end_of_a_long_file_is_read(tmp_path: Path):
    rows = [f"{step},{step / 7},\n" for step in range(TAIL // 8)]
    file = tmp_path / "metrics.csv"
    file.write_text("step,train/loss,early\n-1,,5\n" + "".join(rows) + "7")
    assert file.stat().st_size > 2 * TAIL
    assert last_metrics(file) == {"step": 7, "train/loss": float(len(rows) - 1) / 7}
    assert state(tmp_path).startswith("unfinished, step 7, train/loss")
