"""The doctor's lines tell what is wrong and what to do."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from screens import attach_plain, too_wide
from shard_files import write_pairs

import openslip
from openslip.__main__ import run
from openslip.data.index.journal import JOURNAL, journal_line, read_journal
from openslip.data.index.outdated import index_folders, why_unused
from openslip.data.sources.shards import ShardSource
from openslip.doctor import (
    Finding,
    compiler,
    examine,
    failed_starts,
    indexes,
    open_files,
    runs,
    shared_memory,
    torchvision,
    versions,
)
from openslip.locks import locked
from openslip.run.checkpoints import file_name
from openslip.run.identity import with_format, write_config
from openslip.training.checkpoint_io import DurableCheckpointIO


def test_every_line_is_one_line_and_an_empty_folder_has_no_runs(tmp_path: Path):
    findings = examine(tmp_path / "not" / "there")
    subjects = {"versions", "torchvision", "devices", "C compiler", "disk", "TMPDIR", "shared memory", "open files"}
    assert subjects | {"indexes"} <= {finding.subject for finding in findings}
    assert all("\n" not in finding.line() for finding in findings)
    assert not (tmp_path / "not").exists()


def test_damaged_checkpoints_are_listed_and_nothing_is_changed(tmp_path: Path):
    folder = tmp_path / "first" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (1, 2):
        content = {"openslip": {"step": step}, "weight": torch.ones(10)}
        io = DurableCheckpointIO()
        io.save_checkpoint(content, folder / file_name(step))
        assert io.wait() is None
    (tmp_path / "first" / "config.yaml").write_text("")
    assert [finding.line() for finding in runs(tmp_path)] == [
        "ok      run first       unfinished, valid checkpoints at steps 2, 1"
    ]
    (folder / file_name(2)).write_bytes(b"")
    before = sorted(path.name for path in folder.iterdir())
    run, damaged = runs(tmp_path)
    assert run.state == "unfinished, valid checkpoints at steps 1"
    assert damaged.line().startswith("warning run first       step-000002.ckpt is damaged, 0 bytes where")
    (folder / file_name(1)).write_bytes(b"")
    assert "it cannot be resumed" in runs(tmp_path)[0].line()
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_folder_is_that_of_the_runs_or_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
    for words, listed in (
        ([str(tmp_path)], ["first", "second"]),
        (["--runs", str(tmp_path)], ["first", "second"]),
        ([str(tmp_path / "second")], ["second"]),
    ):
        assert run(["doctor", *words]) == 0
        assert re.findall(r"^ok      run (\w+)", capsys.readouterr().out, re.MULTILINE) == listed


def test_a_checkpoint_of_another_run_is_listed(tmp_path: Path):
    folder = tmp_path / "first" / "checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "first" / "config.yaml").write_text(write_config({"seed": 1}))
    io = DurableCheckpointIO(with_format({"seed": 2}))
    io.save_checkpoint({"openslip": {"step": 4}}, folder / file_name(4))
    assert io.wait() is None
    run, foreign = runs(tmp_path)
    assert "no valid checkpoint" in run.state
    assert foreign.line() == (
        "warning run first       step-000004.ckpt is of another run, seed: 2 in it, 1 in the run: "
        "move it and its .json out of the folder"
    )


def test_a_start_that_failed_is_told_from_one_that_is_under_way_and_from_other_folders(tmp_path: Path):
    for name in ("failed", "starting", "begun", "other"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "model.pt").write_text("")
        if name != "other":
            (tmp_path / name / ".lock").write_text("1 on somewhere\n")
    (tmp_path / "begun" / "config.yaml").write_text("seed: 0\n")
    before = sorted(tmp_path.rglob("*"))
    with locked(tmp_path / "starting" / ".lock"):
        lines = [finding.line() for finding in failed_starts(tmp_path)]
    assert lines == [
        "warning run failed      failed before the end of its first step: the same command removes its files and "
        "starts again; or delete the folder",
        "ok      run starting    is starting",
    ]
    assert sorted(tmp_path.rglob("*")) == before
    subjects = [finding.subject for finding in examine(tmp_path) if finding.subject.startswith("run ")]
    assert subjects == ["run begun", "run failed", "run starting"]


def test_few_open_files_are_a_warning(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 1_048_576))
    assert open_files().line() == "warning open files      1024 allowed: raise it: ulimit -n 65536"


def test_a_long_finding_is_continued_below_its_text_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    finding = Finding("versions", "torch 2.14.1, torchvision 0.29.1, timm 1.0.31, numpy 2.4.6")
    monkeypatch.setattr("openslip.doctor.examine", lambda _: [finding])
    assert run(["doctor"]) == 0
    assert capsys.readouterr().out == f"{finding.line()}\n"
    terminal = attach_plain(monkeypatch, 80)
    assert run(["doctor"]) == 0
    assert terminal.written.splitlines() == [
        "ok      versions        torch 2.14.1, torchvision 0.29.1, timm 1.0.31, numpy",
        "                        2.4.6",
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_wider_than_the_terminal(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / ".lock").touch()
    terminal = attach_plain(monkeypatch, width)
    assert run(["doctor", str(tmp_path)]) == 0
    assert "openslip" in terminal.written
    assert not too_wide(terminal.written, width)


def test_the_versions_are_those_of_the_packages():
    state = versions().state
    assert f"openslip {openslip.__version__}" in state
    assert f"torch {torch.__version__.partition('+')[0]}" in state
    assert "torchvision 0." in state


def test_a_torchvision_of_another_torch_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert torchvision().line().startswith("ok      torchvision     loads with torch ")
    (tmp_path / "torchvision").mkdir()
    reason = "operator torchvision::nms does not exist"
    (tmp_path / "torchvision" / "__init__.py").write_text(f"raise RuntimeError({reason!r})")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    finding = torchvision()
    assert finding.state == f"does not load with torch {torch.__version__} ({reason})"
    assert "install torch and torchvision together" in finding.advice


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_missing_compiler_matters_on_a_gpu(on_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setenv("PATH", str(tmp_path))
    warning = "warning C compiler      no C compiler is found: install gcc, for compile=auto on this GPU"
    assert compiler().line() == (warning if on_gpu else "ok      C compiler      no C compiler is found")
    (tmp_path / "gcc").touch(mode=0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert compiler().line() == "ok      C compiler      found"


def test_a_small_dev_shm_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    assert shared_memory().line() == (
        "warning shared memory   0.1 GB free: data.num_workers > 0 may fail: docker run --shm-size=8g, or "
        "data.num_workers=0"
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=8e9))
    assert shared_memory().line() == "ok      shared memory   8.0 GB free"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An up-to-date index beside shards that a run names; no other place has one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENSLIP_DATA", str(tmp_path / "no data"))
    (tmp_path / "my shards").mkdir()
    for number in range(2):
        write_pairs(tmp_path / "my shards" / f"{number}.tar", 3, 3 * number)
    config = {"data": {"source": {"shards": f"{tmp_path}/my shards/{{0..1}}.tar"}}}
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.yaml").write_text(write_config(config))
    return ShardSource(shards=str(tmp_path / "my shards"), require="caption").index.folder


def unused(runs_folder: Path) -> list[str]:
    """What the doctor says of indexes that no start will use."""
    summary, *warnings = (finding.line() for finding in indexes(runs_folder))
    assert summary.startswith("ok      indexes         ")
    return [warning.removeprefix("warning index           ") for warning in warnings]


def test_an_index_that_fits_its_shards_is_no_warning(index: Path):
    assert [finding.line() for finding in indexes(Path("runs"))] == ["ok      indexes         1 up to date"]
    Path("my shards").rename("moved")
    assert why_unused(Path("moved", index.parent.name, index.name)) is None


def test_an_index_is_found_from_its_shards_their_folder_and_the_folder_of_such_folders(index: Path):
    shards = index.parents[1]
    for place in (shards / "0.tar", shards, shards.parent):
        assert list(index_folders([place])) == [index]


def test_an_index_of_changed_shards_is_listed(index: Path):
    os.utime("my shards/1.tar", ns=(1, 1))
    said = (
        f"{index} is out of date: 1 of its 2 shards have changed, moved or gone: the next start scans the shards again"
    )
    assert unused(Path("runs")) == [f"{said}: delete this folder"]
    shutil.rmtree(index)
    ShardSource(shards="my shards", require="caption")
    assert unused(Path("runs")) == []


def test_an_index_of_another_version_is_listed(index: Path):
    entries = read_journal(index)
    assert all(entry.stamp.startswith("2 ") for entry in entries)
    for entry in entries:
        object.__setattr__(entry, "stamp", f"1{entry.stamp[1:]}")
    (index / JOURNAL).write_bytes(b"".join(map(journal_line, entries)))
    (said,) = unused(Path("runs"))
    assert said.startswith(f"{index} was written by another version of OpenSLIP")


def test_a_damaged_index_is_listed(index: Path):
    rows = bytearray((index / "rows").read_bytes())
    rows[0] ^= 1
    (index / "rows").write_bytes(rows)
    (said,) = unused(Path("runs"))
    assert said.startswith(f"{index} is damaged (rows: not what was written)")


def test_a_foreign_folder_is_listed_also_in_the_cache(index: Path):
    (index.parent / "ours" / "notes").mkdir(parents=True)
    cache = Path("cache", "openslip", "index").resolve()
    (cache / "other").mkdir(parents=True)
    (cache / "other" / JOURNAL).write_text(json.dumps({"stamp": "2 x"}))
    (cache / "other.partial-1").mkdir()
    assert [line.partition(":")[0] for line in unused(Path("runs"))] == [
        f"{index.parent}/ours is no index of OpenSLIP",
        f"{cache}/other is no index of OpenSLIP",
    ]


@pytest.mark.parametrize("option", [[], ["--runs"]])
def test_a_folder_that_is_none_is_named(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").touch()
    for name, problem in (("nowhere", "no such folder"), ("file", "is a file")):
        assert run(["doctor", *option, str(tmp_path / name)]) == 1
        said = f"error: {tmp_path / name}: {problem}; expected the folder of a run, or of several\n"
        assert capsys.readouterr().err == said
