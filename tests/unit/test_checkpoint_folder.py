"""Checkpoints are whole or do not count, whatever happens to the disk or to the process that saves."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_disk import remount, tmpfs  # noqa: F401

from openslip.errors import CheckpointError
from openslip.inference.files import read
from openslip.run.checkpoints import LINK, damage, file_name, newest_whole, saved
from openslip.training import checkpoint_io
from openslip.training.checkpoint_io import DurableCheckpointIO, check_space


def save(folder: Path, step: int, megabytes: int = 1) -> DurableCheckpointIO:
    io = DurableCheckpointIO()
    content = {"openslip": {"step": step}, "weight": torch.full((megabytes << 18,), float(step))}
    io.save_checkpoint(content, folder / file_name(step))
    return io


def test_two_are_kept_and_the_link_leads_to_the_newest(tmp_path: Path):
    for step in (1, 2, 3):
        assert save(tmp_path, step).failure is None
    assert [checkpoint.step for checkpoint in saved(tmp_path)] == [3, 2]
    assert os.readlink(tmp_path / LINK) == "step-000003.ckpt"
    assert read(tmp_path / LINK)["openslip"]["step"] == 3
    assert len(list(tmp_path.iterdir())) == 5


def test_what_was_not_finished_does_not_count(tmp_path: Path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "step-000002.json").unlink()  # killed between the two files
    assert newest_whole(tmp_path).step == 1
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [LINK, "step-000001.ckpt", "step-000003.ckpt"]


@pytest.mark.parametrize("harm", ["cut", "flip", "note", "gone"])
def test_damage_is_named_and_the_one_before_is_taken(tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / file_name(2)
    content = bytearray(path.read_bytes())
    if harm == "cut":
        path.write_bytes(content[:-1])
    elif harm == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif harm == "note":
        path.with_suffix(".json").write_text("{")
    else:
        path.unlink()
    assert newest_whole(tmp_path).step == 1
    assert f"WARNING: checkpoint {path} is damaged" in capsys.readouterr().err


def test_after_a_fall_back_the_one_that_was_taken_is_kept(tmp_path: Path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / file_name(2)).write_bytes(b"")
    assert DurableCheckpointIO().load_checkpoint(tmp_path)["openslip"]["step"] == 1
    save(tmp_path, 3)
    assert [checkpoint.step for checkpoint in saved(tmp_path) if damage(checkpoint) is None] == [3, 1]
    assert not (tmp_path / file_name(2)).exists()


def test_none_whole_is_an_error(tmp_path: Path):
    save(tmp_path, 1)
    (tmp_path / file_name(1)).write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is valid"):
        newest_whole(tmp_path)


def test_a_full_disk_leaves_the_old_one_and_names_what_is_missing(
    tmpfs: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(checkpoint_io, "PAUSES", (0.0, 0.0))
    assert save(tmpfs, 1, megabytes=4).failure is None
    failure = save(tmpfs, 2, megabytes=12).failure
    assert failure is not None
    assert f"{tmpfs}/step-000002.ckpt could not be written" in failure
    assert "MB free, 25.2 MB needed" in failure
    monkeypatch.setattr(checkpoint_io, "check_space", lambda folder, size: None)  # fills up while it is written
    failure = save(tmpfs, 2, megabytes=30).failure
    assert failure is not None
    assert "No space left on device" in failure
    assert newest_whole(tmpfs).step == 1
    assert not list(tmpfs.glob(".*"))


def test_a_save_is_tried_again(tmpfs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # noqa: F811
    monkeypatch.setattr(checkpoint_io, "PAUSES", (0.0, 0.0))
    attempts = []

    def mends_itself(folder: Path, size: int) -> None:
        attempts.append(size)
        remount(tmpfs, "rw" if len(attempts) == 2 else "ro")

    monkeypatch.setattr(checkpoint_io, "check_space", mends_itself)
    assert save(tmpfs, 1).failure is None
    assert "Read-only file system" in capsys.readouterr().err
    assert newest_whole(tmpfs).step == 1
    assert len(attempts) == 2


def test_the_space_for_two_is_asked_for(tmp_path: Path):
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path, free // 3)
    with pytest.raises(CheckpointError, match="MB free"):
        check_space(tmp_path, free)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_system_is_asked_to_sync_before_and_after_the_rename(tmp_path: Path):
    script = (
        "import sys; from pathlib import Path; import torch\n"
        "from openslip.run.checkpoints import file_name; from openslip.training import checkpoint_io\n"
        "content = {'openslip': {'step': 7}, 'weight': torch.ones(100)}\n"
        "checkpoint_io.DurableCheckpointIO().save_checkpoint(content, Path(sys.argv[1]) / file_name(7))"
    )
    trace = tmp_path / "trace"
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2"
    command = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-o",
        str(trace),
        "-y",
        "-e",
        calls,
        sys.executable,
        "-c",
        script,
        str(folder),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=300)
    kinds = []
    for line in trace.read_text().splitlines():
        call = re.match(r"\d+ +(\w+)\(", line)
        if call is None or str(folder) not in line:  # imports rename as well
            continue
        if call[1] in ("fsync", "fdatasync"):
            kinds.append("fsync folder" if f"<{folder}>" in line else "fsync file")
        elif call[1].startswith("rename"):
            kinds.append("rename")
    assert [checkpoint.step for checkpoint in saved(folder) if damage(checkpoint) is None] == [7]
    whole = ["fsync file", "rename", "fsync folder"]
    assert kinds == [*whole, *whole, "rename", "fsync folder"]  # checkpoint, its JSON, the link
