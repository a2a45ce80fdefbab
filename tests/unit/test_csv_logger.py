"""metrics.csv over the parts of a run."""

import errno
import os
from pathlib import Path

import pytest

from openslip.errors import CheckpointError
from openslip.training.logging import csv_logger
from openslip.training.logging.csv_logger import CsvLogger


def test_a_resumed_run_goes_on_with_the_rows_up_to_its_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    first = CsvLogger(path)
    for step in range(1, 6):
        first.log_metrics({"loss": 1 / step}, step)
    first.log_metrics({"late": 1.0}, 5)
    with path.open("a") as file:
        file.write("6,0.1")  # cut short by a crash
    second = CsvLogger(path)
    second.cut_back(3)
    for step in range(4, 7):
        second.log_metrics({"loss": 1 / step}, step)
    assert path.read_text().splitlines() == ["step,loss"] + [f"{step},{1 / step}" for step in range(1, 7)]


def test_a_row_that_finds_no_room_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = CsvLogger(tmp_path / "metrics.csv")
    monkeypatch.setattr(csv_logger, "write_text", full)
    with pytest.raises(CheckpointError, match=r"metrics\.csv could not be written \(No space left on device; "):
        logger.log_metrics({"loss": 1.0}, 1)


def test_a_byte_order_mark_is_read_over(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\r\n1,1.0\r\n", encoding="utf-8-sig")
    logger = CsvLogger(path)
    logger.cut_back(1)
    assert path.read_text() == "step,loss\n1,1.0\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"step;loss\n1;1,0\n", "its first line has no column step: 'step;loss'"),
        ("\ufeffstep\tloss\n1\t1.0\n".encode(), "its first line has no column step"),
        ("step,loss\n1,1.0\n".encode("utf-16"), "codec can't decode"),
        (b"step,loss\n1.0,1.0\n2.0,1.0\n", "line 2 has step '1.0'"),
        (b"step,loss\n1," + b"9" * 200_000 + b"\n", "field larger"),
        (b"loss\n\xe4\n", "codec can't decode"),
        (b"step,loss\n" + b"9" * 5000 + b",1\n", "limit"),
    ],
)
def test_a_file_that_another_program_has_saved_is_named_and_left_alone(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"metrics\.csv is not as the run wrote it \(.*{reason}"):
        CsvLogger(path)
    assert path.read_bytes() == content


def test_zeros_that_a_power_cut_left_are_no_rows(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    CsvLogger(path).log_metrics({"loss": 1.0}, 1)
    with path.open("ab") as file:
        file.write(bytes(30) + b"\n" + bytes(5))
    again = CsvLogger(path)
    again.cut_back(1)
    assert path.read_text() == "step,loss\n1,1.0\n"


def test_back_to_the_start_leaves_the_head_alone(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    CsvLogger(path).log_metrics({"loss": 1.0}, 1)
    again = CsvLogger(path)
    again.cut_back(0)
    assert path.read_text() == "step\n"
    again.log_metrics({"loss": 2.0}, 1)
    assert path.read_text() == "step,loss\n1,2.0\n"
