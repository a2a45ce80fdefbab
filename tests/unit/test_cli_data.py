"""`openslip data`: a table to shards, their index, and what is in them."""

import csv
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from screens import attach_plain, too_wide
from shard_files import jpeg, write_pairs

from openslip.__main__ import run
from openslip.commands._data.convert import layout_options
from openslip.data.convert import descriptions


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder of images and a CSV file."""
    folder = tmp_path / "images"
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number in range(12):
            (folder / f"{number}.jpg").write_bytes(jpeg(number))
            writer.writerow([f"{number}.jpg", f"image number {number}"])
        writer.writerow(["missing.jpg", "an image that is not there"])
    return folder


@pytest.mark.parametrize("option", ["--samples-per-shard", "--workers", "--resize"])
def test_numbers_without_meaning_are_refused_by_name(
    option: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(["data", "convert", "table", str(table), str(tmp_path / "out"), option, "0"]) == 1
    assert f"argument {option}: 0: expected a whole number of at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_table_becomes_shards_that_are_indexed_and_checked(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shards = tmp_path / "shards"
    assert run(["data", "convert", "table", str(table), str(shards), "--samples-per-shard", "5", "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[2] == "shard-000002.tar: 2 samples; in all 3 shards, 12 samples, 1 left out"
    said = captured.out.splitlines()
    assert said[0] == f"12 samples in 3 shards: {shards}"
    assert said[1].startswith("left out: 1 x ")
    again = tmp_path / "again"
    arguments = [str(table / "captions.csv"), str(again), "--samples-per-shard", "5", "--caption-column", "caption"]
    assert run(["data", "convert", "table", *arguments, "--workers", "1"]) == 0  # ROOT may be the table itself
    assert [path.read_bytes() for path in sorted(again.glob("*.tar"))] == [
        path.read_bytes() for path in sorted(shards.glob("*.tar"))
    ]
    capsys.readouterr()
    assert run(["data", "index", str(shards)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "12 samples in 3 shards"
    assert said[1].startswith(f"index: {shards}/.openslip-index/")
    sheet = tmp_path / "sheet.png"
    arguments = ["--decode", "--contact-sheet", str(sheet)]
    assert run(["data", "check", str(shards), *arguments, "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "samples               12\n" in said
    assert "unreadable            0 of 12" in said
    assert f"written               {sheet}" in said
    assert sheet.stat().st_size > 1000


def test_the_lines_of_a_check_fit_the_terminal(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shards = str(tmp_path / "shards")
    assert run(["data", "convert", "table", str(table), shards, "--workers", "1"]) == 0
    terminal = attach_plain(monkeypatch, 80)
    assert run(["data", "check", shards, "--decode", "--workers", "0"]) == 0
    assert "start and end\n                      included\n" in terminal.written
    assert not too_wide(terminal.written, 80)


def test_separator_and_encoding_are_options_and_bad_rows_are_listed(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content = "image;caption\n0.jpg;café, crème\n1.jpg;one\n2.jpg;two\n".encode("latin-1")
    (table / "captions.csv").write_bytes(content)
    arguments = ["data", "convert", "table", str(table), str(tmp_path / "out"), "--workers", "1"]
    assert run(arguments) == 1
    assert "is its separator ';'? --separator ';'" in capsys.readouterr().err
    assert run([*arguments, "--separator", ";"]) == 0
    assert "left out: 1 x caption that is not UTF-8 (--encoding names another): " in capsys.readouterr().out
    assert '"row 0"' in (tmp_path / "out" / "left_out.jsonl").read_text()
    arguments[4] = str(tmp_path / "other")
    assert run([*arguments, "--separator", ";", "--encoding", "latin-1"]) == 0
    assert capsys.readouterr().out == f"3 samples in 1 shards: {arguments[4]}\n"


def test_a_config_names_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "cc3m").mkdir()
    write_pairs(tmp_path / "cc3m" / "0.tar", 3)
    monkeypatch.setenv("OPENSLIP_DATA", str(tmp_path))
    assert run(["data", "check", "cc3m", "--workers", "0"]) == 0
    assert "3 of 2 905 954 samples, 0 %" in capsys.readouterr().out
    assert run(["data", "index", "webdataset", f"data.source.shards={tmp_path}/cc3m"]) == 0
    assert "3 samples in 1 shards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frob"], "error: unknown command data frob; one of: check, convert, get, index, list, vectors"),
        (["index", "nowhere.tar"], "error: shard nowhere.tar: No such file or directory"),
        (["index", "pipe:touch PWNED"], "error: shards 'pipe:...': pipe: would run a command"),
        (["check", "cc3"], "error: cc3: neither a path nor a data config; did you mean cc3m?"),
        (["convert", "image_folder", ".", "shards"], "all of which the layout image_folder reads"),
        (["check", "cc3m", "data.source.shrads=x"], "error: config key data.source.shrads is unknown"),
        (["convert", "tabel", "x", "y"], "error: layout tabel does not exist; did you mean table?"),
        (["convert", "table", "nowhere", "out"], "error: "),
        (["check"], "the following arguments are required: target"),
    ],
)
def test_a_mistake_is_named(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert run(["data", *arguments]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("layout", sorted(descriptions()))
def test_every_layout_tells_its_options(layout: str, capsys: pytest.CaptureFixture[str]):
    assert run(["data", "convert", layout, "--help"]) == 0
    said = capsys.readouterr().out
    for name, (_, repeated, purpose) in layout_options(layout).items():
        assert f"--{name.removesuffix('s') if repeated else name} ".replace("_", "-") in said
        assert purpose


@pytest.mark.parametrize("layout", sorted(descriptions()))
def test_the_help_of_a_layout_prints_whole_entries(
    layout: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "1000")  # no word is broken at a hyphen
    assert run(["data", "convert", layout, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    lines = (inspect.getdoc(importlib.import_module(f"openslip.data.convert.layouts.{layout}").records) or "").split()
    entries = " ".join(lines).partition(" Args: root: ")[2].partition(" Raises: ")[0]
    options = layout_options(layout)
    assert entries.endswith(" ".join(f"{name}: {purpose}" for name, (_, _, purpose) in options.items()))
    assert all(purpose in said for _, _, purpose in options.values())


@pytest.mark.parametrize("command", ["", "convert", "convert table", "convert yfcc_zip", "get", "check"])
def test_help_needs_no_torch(command: str):
    words = ["data", *command.split(), "--help"]
    script = f"""import sys
from openslip.__main__ import run
try:
    run({words})
except SystemExit:
    pass
assert 'torch' not in sys.modules"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: openslip data {command.partition(' ')[0]}")
    assert ("--metadata" in done.stdout) == (" " in command), "an option of the layout"
