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
    with pytest.raises(CheckpointError, match=r"metrics\.csv could not be written \(No space left on device\)"):
        logger.log_metrics({"loss": 1.0}, 1)


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
