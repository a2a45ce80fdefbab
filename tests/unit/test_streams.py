"""A command that leaves files ends its work whether or not anybody reads what it prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openslip.__main__ import prints_its_product

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

PRINTS = """
import sys
from openslip import streams
streams.prepare()
with open("file", "w") as file:
    for line in range(20_000):
        print("to standard output", line)
        sys.stderr.write("to standard error\\n")
        file.write("kept\\n")
"""
ENTRY = """
import sys
from openslip import streams
from openslip.errors import run_entry_point
streams.prepare(stdout_is_product=True)
sys.exit(run_entry_point(lambda words: [print(number) for number in range(SIZE)] and None, []))
"""


@pytest.mark.parametrize(
    "redirection",
    [
        *("| head -3 >&2", "2>&1 | head -3 >&2", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1"),
        *(">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"),
    ],
)
def test_a_process_whose_output_nobody_takes_goes_on_and_its_files_are_complete(tmp_path: Path, redirection: str):
    (tmp_path / "prints.py").write_text(PRINTS)
    shell = f"set -o pipefail; {sys.executable} prints.py {redirection}"
    ended = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-300:]
    assert "Error" not in ended.stderr + ended.stdout
    assert (tmp_path / "file").read_text() == "kept\n" * 20_000


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_command_whose_reader_has_left_ends_quietly(tmp_path: Path, size: int):
    (tmp_path / "entry.py").write_text(ENTRY.replace("SIZE", str(size)))
    shell = f"set -o pipefail; {sys.executable} entry.py | head -1"
    ended = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "0\n", "")


def test_a_command_whose_output_is_its_product_says_that_it_could_not_be_written(tmp_path: Path):
    (tmp_path / "entry.py").write_text(ENTRY.replace("SIZE", "10"))
    shell = f"{sys.executable} entry.py >/dev/full"
    ended = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    said = "error: standard output cannot be written (No space left on device): make room, or write it elsewhere\n"
    assert (ended.returncode, ended.stderr) == (1, said)


@pytest.mark.parametrize("entry", ["train.py --help", "eval_zeroshot.py --help", "-m openslip train --help"])
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "2>&- | true"])
def test_every_entry_point_takes_output_that_nobody_reads(entry: str, redirection: str):
    shell = f"set -o pipefail; {sys.executable} {entry} {redirection}"
    ended = subprocess.run(["bash", "-c", shell], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "command",
    [
        *("data check", "predict", "doctor", "plan", "verify", "train --cfg job", "eval --info=defaults"),
        *("results", "reproduce", "reproduce laptop_lit --run RUN", "reproduce d"),
    ],
)
def test_a_command_that_prints_its_product_reports_a_full_disk(command: str):
    assert prints_its_product(command.split())


@pytest.mark.parametrize(
    "command",
    [
        *("train", "eval", "sweep", "report", "data convert", "data prefetch", "strip", "merge", "export"),
        *("predict --out FILE", "results --output=FILE", "reproduce laptop_lit", "reproduce laptop_lit --record A"),
    ],
)
def test_a_command_that_leaves_files_does_not_depend_on_standard_output(command: str):
    assert not prints_its_product(command.split())
