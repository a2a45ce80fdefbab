"""metrics.csv over the parts of a run."""

from pathlib import Path

from openslip.training.csv_logger import CsvLogger


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


def test_back_to_the_start_leaves_the_head_alone(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    CsvLogger(path).log_metrics({"loss": 1.0}, 1)
    again = CsvLogger(path)
    again.cut_back(0)
    assert path.read_text() == "step\n"
    again.log_metrics({"loss": 2.0}, 1)
    assert path.read_text() == "step,loss\n1,2.0\n"
