"""Checkpoints are whole or do not count, whatever happens to the disk or to the process that saves."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_disk import remount, tmpfs  # noqa: F401

from openslip.errors import CheckpointError, UserError
from openslip.inference.files import checkpoint_file, read
from openslip.inference.layouts.folder import tensors
from openslip.run.checkpoints import LINK, damage, file_name, newest_whole, saved
from openslip.run.identity import with_format, write_config
from openslip.training import checkpoint_io
from openslip.training.checkpoint_io import DurableCheckpointIO, check_space

WEIGHT = torch.tensor([1.5, 2.5, 3.5])


def save(folder: Path, step: int, megabytes: int = 1) -> str | None:
    """Save, and return why it has failed."""
    io = DurableCheckpointIO()
    content = {"openslip": {"step": step}, "weight": torch.full((megabytes << 18,), float(step))}
    io.save_checkpoint(content, folder / file_name(step))
    failure = io.wait()
    return None if failure is None else str(failure)


def flip_a_weight(file: Path) -> None:
    """Change one bit of the four bytes of the only 2.5 in a file."""
    content = bytearray(file.read_bytes())
    content[content.index(struct.pack("<f", 2.5))] ^= 1
    file.write_bytes(content)


def test_two_are_kept_and_the_link_leads_to_the_newest(tmp_path: Path):
    for step in (1, 2, 3):
        assert save(tmp_path, step) is None
    assert [checkpoint.step for checkpoint in saved(tmp_path)] == [3, 2]
    assert os.readlink(tmp_path / LINK) == "step-000003.ckpt"
    assert read(tmp_path / LINK)["openslip"]["step"] == 3
    assert len(list(tmp_path.iterdir())) == 5


def test_a_run_whose_notes_were_not_copied_along_is_loaded_by_its_link(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / LINK).symlink_to(file_name(4))
    torch.save({"openslip": {"step": 4}, "weight": WEIGHT}, tmp_path / "checkpoints" / file_name(4))
    assert read(checkpoint_file(tmp_path))["openslip"]["step"] == 4
    flip_a_weight(tmp_path / "checkpoints" / "step-000004.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt is damaged \(checksum of "):
        checkpoint_file(tmp_path)


def test_damaged_weights_in_the_folder_of_another_library_are_refused(tmp_path: Path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"weight": WEIGHT}, file)
    assert torch.equal(tensors(file)["weight"], WEIGHT)
    flip_a_weight(file)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is damaged \(checksum of "):
        tensors(file)


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


def note(folder: Path, step: int) -> dict[str, Any]:
    return json.loads((folder / file_name(step)).with_suffix(".json").read_text())


@pytest.mark.parametrize("wrong", [60, 4, 2.0, True, "2", None, float("nan"), 10**400, -2])
def test_a_step_that_was_changed_in_the_json_makes_no_checkpoint_the_newest(
    tmp_path: Path, wrong: Any, capsys: pytest.CaptureFixture[str]
):
    save(tmp_path, 1)
    save(tmp_path, 2)
    for step, newest in ((1, 2), (2, 1)):
        kept = note(tmp_path, step)
        path = (tmp_path / file_name(step)).with_suffix(".json")
        path.write_text(json.dumps({**kept, "step": wrong}))
        assert newest_whole(tmp_path).step == newest
        said = capsys.readouterr().err
        assert ("step-000002.ckpt is damaged (step-000002.json" in said) == (step == 2)
        path.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "null", "3", '"step"', "", "[" * 100_000, b"\xff\xfe\x00", '{"step": 2}'),
        *('{"step": 2, "size": "9", "sha256": 1}', '{"step": 2, "size": 1e999, "sha256": ""}'),
        '{"step": 2, "size": ' + "9" * 5000 + "}",
    ],
)
def test_a_json_that_records_nothing_is_passed_over_with_a_line(
    tmp_path: Path, text: str | bytes, capsys: pytest.CaptureFixture[str]
):
    save(tmp_path, 1)
    save(tmp_path, 2)
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "step-000002.json").write_bytes(content)
    assert newest_whole(tmp_path).step == 1
    assert "step-000002.ckpt is damaged (step-000002.json cannot be read)" in capsys.readouterr().err


def test_a_checkpoint_under_another_steps_name_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save(tmp_path, 1)
    save(tmp_path, 2)
    for suffix in (".ckpt", ".json"):
        (tmp_path / f"step-000002{suffix}").rename(tmp_path / f"step-000060{suffix}")
    assert newest_whole(tmp_path).step == 1
    assert "step-000060.ckpt is damaged (step-000060.json says step 2)" in capsys.readouterr().err
    (tmp_path / "step-000060.json").write_text(json.dumps({**note(tmp_path, 60), "step": 60}))
    assert newest_whole(tmp_path).step == 1
    assert "step-000060.ckpt is damaged (its content is of step 2)" in capsys.readouterr().err


def test_a_changed_json_costs_no_other_checkpoint(tmp_path: Path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step-000001.json").write_text(json.dumps({**note(tmp_path, 1), "step": 60}))
    save(tmp_path, 3)
    assert [checkpoint.step for checkpoint in saved(tmp_path) if damage(checkpoint) is None] == [3, 2]
    (tmp_path / "step-000003.json").write_text("{}")
    assert DurableCheckpointIO().load_checkpoint(tmp_path)["openslip"]["step"] == 2
    for step in (4, 5):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.glob("step-*.ckpt")) == ["step-000004.ckpt", "step-000005.ckpt"]


def test_no_save_removes_a_checkpoint_of_a_later_step(tmp_path: Path):
    for step in (4, 8):
        save(tmp_path, step)
    (tmp_path / "step-000008.json").write_text("{}")
    DurableCheckpointIO().load_checkpoint(tmp_path)
    save(tmp_path, 6)
    assert (tmp_path / file_name(8)).exists()


def config(**changes: Any) -> dict[str, Any]:
    return with_format({"seed": 0, "optim": {"lr": 0.1}, "trainer": {"max_steps": 30, "max_epochs": None}, **changes})


def run_with(folder: Path, stored: Any, step: int, *, now: dict[str, Any] | None = None) -> Path:
    """A run's checkpoints, one of them saved under `stored`, in the folder of a run whose config is `now`."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(write_config(now or stored))
    content = {"openslip": {"step": step}, "weight": torch.ones(3)}
    io = DurableCheckpointIO()
    io.config = stored
    io.save_checkpoint(content, folder / "checkpoints" / file_name(step))
    assert io.wait() is None
    return folder / "checkpoints"


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (config(seed=1), "seed: 1 in it, 0 in the run"),
        (config(optim={"lr": 0.2}), r"optim\.lr: 0\.2 in it, 0\.1 in the run"),
        (config(trainer={"max_steps": 60, "max_epochs": None}), r"trainer\.max_steps: 60 in it, 30 in the run"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path: Path, other: dict[str, Any], reason: str):
    checkpoints = run_with(tmp_path / "a", config(), 4)
    assert newest_whole(checkpoints).step == 4
    run_with(tmp_path / "a", other, 8, now=config())
    for refuse in (newest_whole, DurableCheckpointIO().load_checkpoint, lambda _: checkpoint_file(tmp_path / "a")):
        with pytest.raises(CheckpointError, match=rf"step-000008\.ckpt is of another run \({reason}\)"):
            refuse(checkpoints)
    assert len(list(checkpoints.glob("step-*.ckpt"))) == 2


def test_a_longer_run_with_its_data_elsewhere_is_the_same_run(tmp_path: Path):
    longer = config(trainer={"max_steps": 60, "max_epochs": None}, data={"source": {"shards": "/b"}})
    checkpoints = run_with(tmp_path / "a", config(data={"source": {"shards": "/a"}}), 4, now=longer)
    assert newest_whole(checkpoints).step == 4


@pytest.mark.parametrize("description", ["text", [], {}, {"format": "x"}, {"format": 2, "trainer": {"max_steps": "9"}}])
def test_a_description_of_a_run_that_is_none_is_refused(tmp_path: Path, description: Any):
    checkpoints = run_with(tmp_path / "a", description, 4, now=config())
    with pytest.raises(CheckpointError, match="of another run"):
        newest_whole(checkpoints)


def test_a_checkpoint_that_names_no_run_is_the_folders_own(tmp_path: Path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(write_config(config()))
    save(tmp_path / "checkpoints", 4)
    assert newest_whole(tmp_path / "checkpoints").step == 4


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
    assert save(tmpfs, 1, megabytes=4) is None
    failure = save(tmpfs, 2, megabytes=12)
    assert failure is not None
    assert f"{tmpfs}/step-000002.ckpt could not be written" in failure
    assert "MB free, 25.2 MB needed" in failure
    monkeypatch.setattr(checkpoint_io, "check_space", lambda folder, size: None)  # fills up while it is written
    failure = save(tmpfs, 2, megabytes=30)
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
    assert save(tmpfs, 1) is None
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
        "io = checkpoint_io.DurableCheckpointIO()\n"
        "io.save_checkpoint(content, Path(sys.argv[1]) / file_name(7)); assert io.wait() is None"
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
