"""What comes from outside cannot steer the terminal, wherever it is printed."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_models import bundle, dual_encoder
from screens import attach_plain, too_wide
from shard_files import jpeg, write_tar

from openslip import terminal
from openslip.__main__ import run
from openslip.commands.eval import show
from openslip.errors import UserError, run_entry_point
from openslip.report import write_report
from openslip.terminal import SAID_AFTER, notice, printable, say, say_wrapped, waiting, wrapped

HOSTILE = "a\x1b]0;owned\x07\x9b31m\x7f\u202eb\u2066\r"
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(capsys: pytest.CaptureFixture[str]) -> str:
    """All that was printed, which nothing in it steers."""
    captured = capsys.readouterr()
    assert not STEERING.search(captured.out + captured.err), repr(captured)
    return captured.out + captured.err


def test_every_steering_character_is_escaped_and_no_other():
    steering = [chr(code) for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))]
    for character in (*steering, "\u2028", "\udcff"):
        assert printable(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"
    for text in (
        "plain",
        "Grüße, 世界, \N{GRINNING FACE}",
        "é\u0301",
        r"C:\x1b",
        "a\u00a0b",
        "\u0645\u0631\u062d\u0628\u0627",
    ):
        assert printable(text) == text


def test_lines_stay_lines(capsys: pytest.CaptureFixture[str]):
    say("one\ntwo", HOSTILE)
    notice("three\nfour")
    captured = capsys.readouterr()
    assert captured.out.startswith("one\\ntwo\na\\x1b]0;owned\\x07\\x9b31m\\x7f\\u202eb\\u2066\\r\n")
    assert captured.err == "three\\nfour\n"


@pytest.mark.parametrize("error", [UserError, ValueError, OSError])
def test_an_error_is_printed_with_escapes(capsys: pytest.CaptureFixture[str], error: type[Exception]):
    def main(arguments: list[str]) -> None:
        raise error(HOSTILE)

    assert run_entry_point(main, []) == 1
    assert "a\\x1b]0;owned\\x07\\x9b31m\\x7f\\u202eb" in clean(capsys)


def test_names_of_shards_members_and_captions_are_printed_with_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / HOSTILE
    folder.mkdir()
    path = write_tar(folder / f"{HOSTILE}.tar", [("a.jpg", jpeg(0)), ("a.txt", b"x"), (f"{HOSTILE}.jpg", jpeg(1))])
    assert run(["data", "index", str(folder)]) == 0
    assert "1 x no caption" in clean(capsys)
    assert run(["data", "check", str(folder), "--require", "null", "--workers", "0", "--decode"]) == 0
    clean(capsys)
    path.write_bytes(path.read_bytes()[:700])
    assert run(["data", "index", str(folder)]) == 1
    assert "is cut off" in clean(capsys)


def test_names_of_runs_and_keys_of_checkpoints_are_printed_with_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "runs" / HOSTILE
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "checkpoints" / "step-000001.json").write_text(json.dumps({"step": 1, "size": 1, "sha256": HOSTILE}))
    assert run(["doctor", "--runs", str(tmp_path / "runs")]) == 0
    assert "run a\\x1b" in clean(capsys)
    assert run(["report", str(folder)]) == 0
    assert "report.html" in clean(capsys)
    torch.save({HOSTILE: torch.zeros(1), "state_dict": {HOSTILE: torch.zeros(1)}}, tmp_path / "a.ckpt")
    assert run(["predict", "x.jpg", "--checkpoint", str(tmp_path / "a.ckpt"), "--labels", "a,b"]) == 1
    assert "error: " in clean(capsys)


def test_labels_of_a_file_are_printed_with_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model = bundle(dual_encoder())
    monkeypatch.setattr("openslip.inference.load.load", lambda *_, **__: model)
    (tmp_path / "labels.txt").write_text(f"{HOSTILE[:-1]}\ncat\n{HOSTILE[:-1]}\n")
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    words = ["predict", str(tmp_path / "a.jpg"), "--checkpoint", "x", "--labels", f"@{tmp_path / 'labels.txt'}"]
    assert run(words) == 0
    assert clean(capsys).count("a\\x1b]0;owned") == 2, "as a label, and as one that is given twice"


def test_names_of_evaluations_and_metrics_are_printed_as_they_are_or_with_escapes(capsys: pytest.CaptureFixture[str]):
    show({"mine [test]": {f"top1_[red]{HOSTILE[:2]}": 50.0}}, {"mine [test]": {"[note]": HOSTILE[:2]}})
    printed = clean(capsys)
    assert all(text in printed for text in ("mine [test]", "top1_[red]a\\x1b", "[note]", " a\\x1b "))


class Hostile(BaseHTTPRequestHandler):
    """Refuses everything with a reason that steers a terminal."""

    def do_GET(self) -> None:
        self.send_response(403, HOSTILE[:-1].encode("latin-1", "ignore").decode("latin-1"))
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


def test_the_reason_of_a_server_is_printed_with_escapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.tar"
        assert run(["data", "index", address]) == 1
        server.shutdown()
    assert "HTTP 403 a\\x1b]0;owned" in clean(capsys)


def test_a_report_shows_hostile_names(tmp_path: Path):
    folder = tmp_path / f"{HOSTILE}$x$<b>"
    (folder / "arrays").mkdir(parents=True)
    (folder / "config.yaml").write_text(f'"{HOSTILE!a}": "<script>"\n')
    (folder / "metrics.csv").write_text(
        f"step,train/{HOSTILE[:-1]}$_loss,train/<script>_loss\n1,2,3\n2,1,2\n", encoding="utf-8"
    )
    classnames = np.array([f"<i>{HOSTILE}", "b"])
    np.savez(folder / "arrays" / "x.npz", labels=[0, 1], predictions=[1, 0], classnames=classnames)
    page = write_report(folder).read_text(encoding="utf-8")
    assert not STEERING.search(page)
    assert "<script>" not in page
    assert "<i>a" not in page


def test_only_long_waits_are_said_and_not_too_often(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(terminal, "SAID_AFTER", 0.05)
    monkeypatch.setattr(terminal, "_quiet_until", 0.0)
    with waiting(lambda: "nothing"):
        pass
    for what in ("one", "two"):
        with waiting(lambda what=what: what):
            time.sleep(0.15)
    assert capsys.readouterr().err == "waiting for one\n"
    assert SAID_AFTER <= 10


THEIR_OWN = {"__main__.py", "signals.py", "commands/completion.py"}  # usage, an empty line, a script for a shell


def test_all_else_is_printed_through_one_module():
    package = Path(terminal.__file__).parent
    writers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"(?<!\w|\.)print\(|sys\.std(out|err)\.write", path.read_text(encoding="utf-8"))
    }
    assert writers == THEIR_OWN


def test_a_wrapped_line_keeps_its_words_and_whole_commands():
    text = "  metrics: some/folder; `openslip report some/folder` adds them to the report\x1b, and a-hyphen stays"
    lines = wrapped(text, 40)
    assert lines == [
        "  metrics: some/folder;",
        "    `openslip report some/folder` adds",
        "    them to the report\\x1b, and a-hyphen",
        "    stays",
    ]
    assert wrapped("a" * 50, 40) == ["a" * 50]
    assert wrapped("one two", 3, indent=0) == ["one", "two"]
    assert wrapped("", 40) == [""]


def test_only_a_terminal_gets_wrapped_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    text = "word " * 30
    say_wrapped(text)
    assert capsys.readouterr().out == f"{text}\n"
    stream = attach_plain(monkeypatch, 20)
    say_wrapped(text, "", indent=5)
    assert [len(line) for line in stream.written.splitlines()] == [59, 59, 39, 0]  # at least 60 columns are assumed


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize(
    "command", ["--help", "data", "data list", "data get", "data get fashion_mnist", "models", "data convert --help"]
)
def test_no_line_is_wider_than_the_terminal(command: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVALUATION_DATA", raising=False)
    monkeypatch.setattr("openslip.data.get.folder.create", lambda *_: None)
    stream = attach_plain(monkeypatch, width)
    assert run(command.split()) == 0
    assert not too_wide(stream.written, width)
