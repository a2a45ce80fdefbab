"""Named pipes, sockets and devices are refused wherever a file is opened, instead of waited for."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from openslip.data.convert.convert import find_records
from openslip.data.convert.image import UnusableError, read_image
from openslip.data.convert.record import PictureFile
from openslip.data.image.decode import open_image
from openslip.data.sources.image_folder import ImageFolder
from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError
from openslip.inference.images import to_image
from openslip.inference.load import load
from openslip.regular_file import regular_file
from openslip.report import write_report
from openslip.report.compared_run import read_runs
from openslip.report.run_files import read_config as read_report_config
from openslip.run.folder import open_run
from openslip.run.identity import read_config


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    (tmp_path / "folder" / "class").mkdir(parents=True)
    os.mkfifo(tmp_path / "folder" / "class" / "pipe.jpg")
    return tmp_path / "folder" / "class" / "pipe.jpg"


OPENERS: dict[str, Callable[[Path], object]] = {
    "shard": lambda path: ShardSource(shards=str(path), require=None),
    "checkpoint": load,
    "image": lambda path: open_image(path, "image"),
    "image for a label": to_image,
    "image of a folder": lambda path: ImageFolder(root=str(path.parent.parent))[0],
    "table": lambda path: list(find_records("table")(path)),
    "named table": lambda path: list(find_records("table")(path.parent, metadata=path)),
    "list of captions": lambda path: list(find_records("cc_npy")(path.parent, metadata=path)),
    "config of a run": read_config,
}


@pytest.mark.parametrize("name", OPENERS)
def test_a_named_pipe_is_refused_by_name(pipe: Path, name: str):
    with pytest.raises(UserError, match=f"{pipe} is a named pipe: expected a regular file"):
        OPENERS[name](pipe)


def test_a_converted_image_that_is_a_named_pipe_is_left_out(pipe: Path):
    with pytest.raises(UnusableError, match="cannot be opened"):
        read_image(PictureFile(str(pipe)))


@pytest.mark.parametrize("name", ["result.json", "env.json", "metrics.csv", "id.txt", "micro_batch_size.json"])
def test_a_run_whose_folder_holds_a_named_pipe_is_refused(pipe: Path, name: str):
    run = pipe.parent
    (run / "config.yaml").write_text("format: 4\nseed: 0\n")
    pipe.rename(run / name)
    settings = {"name": run.name, "runs_dir": str(run.parent), "resume": "auto", "seed": 0}
    for read in (lambda: open_run(settings, run.name), lambda: write_report(run), lambda: read_runs([run, run])):
        with pytest.raises(UserError, match=f"{run / name} is a named pipe: expected a regular file"):
            read()


def test_a_report_needs_no_config(pipe: Path):
    pipe.rename(pipe.with_name("config.yaml"))
    assert read_report_config(pipe.parent) == {}


def test_devices_and_sockets_are_none_and_links_to_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path, kind in (("/dev/zero", "a device"), ("socket", "a socket")):
            with pytest.raises(UserError, match=f"{path} is {kind}: expected a regular file"):
                regular_file(path)
    Path("file").write_text("content")
    Path("link").symlink_to("file")
    assert regular_file("link").read_text() == "content"
    assert not regular_file("absent").exists()
    assert regular_file(".").is_dir()
