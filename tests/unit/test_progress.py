"""What a terminal and a log file show while a command works, replayed on a terminal in memory."""

import re
import sys
import threading
from collections.abc import Iterator

import pytest
from screens import attach

from openslip import progress as module
from openslip.errors import CheckpointError
from openslip.progress import BYTES, Phase, close, fitting, on_terminal, progress, showing_progress
from openslip.terminal import be_quiet, inform, mention, notice, say
from openslip.training.checkpoint_io import DurableCheckpointIO
from openslip.training.logging.status_line import StatusLine

WIDTHS = [60, 80, 120, 200]
COLOUR = re.compile(r"\x1b\[[\d;]*[1-9][\d;]*m")


@pytest.fixture(autouse=True)
def shown() -> Iterator[None]:
    with showing_progress(is_first=True):
        yield
    be_quiet(False)


def logged(step: int, total: int) -> dict[str, float | int]:
    """The metrics of a step of a large run, whose numbers and number of terms vary."""
    speed = {"samples_per_second": 12_345.6 / step, "samples_per_second_per_device": 1_543.2 / step}
    speed |= {"data_wait_percent": 3.0, "mfu_percent": 41.23, "peak_memory_gb": 71.5, "eta_hours": (total - step) / 9}
    terms = {"loss": 10.0 / step, "clip_loss": 7.0 / step, "clip_acc": 12.5, "ssl_loss": 3.0, "ssl_acc": 9.0}
    terms |= {"logit_scale": 14.29, "lr": 1e-7 * step, "skipped": step % 2}
    return {**{f"train/{key}": x for key, x in terms.items()}, **{f"speed/{key}": x for key, x in speed.items()}}


@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_shows_one_line_at_a_time_that_fits_below_whole_notices(width: int, monkeypatch: pytest.MonkeyPatch):
    stream = attach(monkeypatch, width)
    line, total = StatusLine(every_n_steps=1), 9
    said = [
        f"WARNING: /some/folder/a{number}.npz could not be written (it is {'far ' * number}away)" for number in (1, 40)
    ]
    line.begin()
    for step in range(1, total + 1):
        line.show(step, total, logged(step, total))
        assert stream.screen.bottom().startswith(f"step {step}/{total}  loss {10 / step:.4g}  ETA ")
        if step == 3:
            notice(said[0])
            say("data: 100 samples")
        if step == 6:
            with progress("evaluating x"), progress("images", total=50) as advance:
                advance(10)
                notice(said[1])
            assert stream.screen.bottom().startswith(f"step {step}/")
    line.close()
    say("top-1: 50.0 %")
    wrapped = [text[start : start + width] for text in said for start in range(0, len(text), width)]
    first, second = wrapped[: -(-len(said[0]) // width)], wrapped[-(-len(said[0]) // width) :]
    last = stream.screen.rows()
    assert last[:-3] == [row.rstrip() for row in (*first, "data: 100 samples", *second)]
    assert last[-3].startswith("step 9/9  loss 1.111  ETA 0:00  1372 samples/s")
    assert last[-2:] == ["top-1: 50.0 %", ""]
    for rows in stream.seen:
        lines = [row for row in rows if re.match(r"step \d|[-\\|/] ", row)]
        assert len(lines) <= 1, rows
        assert all(len(row) <= width - 2 for row in lines)
        others = [row for row in rows if row and row not in lines]
        assert others == [row for row in last if row in others], "nothing of earlier lines is left"


@pytest.mark.parametrize("width", WIDTHS)
def test_the_least_important_fields_are_dropped_first(width: int):
    line = StatusLine(every_n_steps=1)
    line.show(1000, 24_000, logged(1000, 24_000))
    text = line.line(width)
    assert "  ".join(line.fields).startswith(text)
    assert len(text) <= width
    assert text.startswith("step 1000/24000  loss 0.01  ETA 2555:33:20")
    assert ("clip_acc" in text, "GB" in text) == (width > 80, width == 200)


def test_a_line_takes_as_many_whole_fields_as_fit():
    fields = ["step 1/2", "loss 3", "ETA 0:01"]
    assert [fitting(fields, width) for width in (5, 16, 17, 25, 26)] == [
        *("step 1/2", "step 1/2  loss 3", "step 1/2  loss 3", "step 1/2  loss 3", "step 1/2  loss 3  ETA 0:01")
    ]


@pytest.mark.parametrize("width", [20, *WIDTHS])
@pytest.mark.parametrize("total", [None, 1e6])
def test_a_phase_fits_however_long_its_name_is(width: int, total: float | None, monkeypatch: pytest.MonkeyPatch):
    stream = attach(monkeypatch, width)
    with progress("outer"), progress("n" * 150 + "\x1b[2J", total=total) as advance:
        advance(5e5)
        module.redraw()
        assert 10 < len(stream.screen.bottom()) <= width - 2
        assert ("  500,000/1,000,000" if total else "  500,000") in stream.screen.bottom() or width == 20
    assert stream.screen.rows() == [""]
    assert max(map(len, stream.seen)) == 1
    assert "\x1b[2J" not in stream.written


def test_a_phase_names_what_it_is_part_of_and_how_far_it_is(monkeypatch: pytest.MonkeyPatch):
    stream = attach(monkeypatch, 80)
    monkeypatch.setattr(module.time, "monotonic", iter(range(1000)).__next__)
    with progress("opening the dataset"), progress("indexing shards", total=40) as advance:
        advance(10)
        module.redraw()
        assert re.match(r". opening the dataset: indexing shards  ━+\.+  10/40  ETA 0:\d\d$", stream.screen.bottom())
    bar = re.search(r"━+\.+", next(row for rows in stream.seen for row in rows if "10/40" in row))
    assert bar
    assert bar[0].count("━") == len(bar[0]) // 4


def test_downloads_count_megabytes_and_unknown_totals_only_what_is_done():
    download, conversion = Phase("a", 2e9, BYTES, within=""), Phase("b", None, "", within="")
    assert (download.amount(), conversion.amount()) == ("0.0/2,000.0 MB", "")
    download.advance(1.25e6)
    conversion.advance(12_345)
    assert (download.amount(), conversion.amount()) == ("1.2/2,000.0 MB", "12,345")


def test_what_libraries_print_appears_above_the_line(monkeypatch: pytest.MonkeyPatch):
    stream = attach(monkeypatch, 80)
    with progress("evaluating"):
        sys.stdout.write("from a library\n")
        sys.stderr.write("two\nlines\n")
        assert stream.screen.rows() == ["from a library", "two", "lines", "- evaluating"]
    assert stream.screen.rows() == ["from a library", "two", "lines", ""]
    assert sys.stdout is sys.stderr is stream


def test_results_in_a_file_are_not_sent_to_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path):
    stream = attach(monkeypatch, 80)
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with progress("classifying"):
            say("cat")
    assert (tmp_path / "out").read_text() == "cat\n"
    assert "cat" not in stream.written


def test_colour_obeys_no_color(monkeypatch: pytest.MonkeyPatch):
    for no_color in (False, True):
        stream = attach(monkeypatch, 80)
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        with progress("reading", total=2) as advance:
            advance(1)
            module.redraw()
        assert bool(COLOUR.search(stream.written)) is not no_color
        assert "━" in stream.written


def test_the_cursor_stays_visible_because_a_kill_could_not_show_it_again(monkeypatch: pytest.MonkeyPatch):
    stream = attach(monkeypatch, 80)
    with progress("reading"):
        pass
    assert "\x1b[?25l" not in stream.written


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_log_file_and_a_dumb_terminal_get_plain_lines_about_long_phases(
    term: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if term:
        monkeypatch.setenv("TERM", term)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module, "FIRST_LINE", 0.02)
    spoken = threading.Event()
    monkeypatch.setattr(module, "mention", lambda *lines: (mention(*lines), spoken.set()))
    with progress("outer"), progress("indexing shards", total=4) as advance:
        advance(1)
        assert spoken.wait(5)
    lines = capsys.readouterr().err.splitlines()
    assert re.match(r"outer: indexing shards: 1/4, 25 %, 0:00 so far", lines[0])
    assert "outer: indexing shards: done in 0:00" in lines
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_short_phases_leave_no_line_in_a_log_file(capsys: pytest.CaptureFixture[str]):
    with progress("reading"):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_phase_that_fails_is_not_called_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    spoken = speak_at_once(monkeypatch)

    def fail() -> None:
        with progress("reading"):
            assert spoken.wait(5)
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    said = capsys.readouterr().err
    assert said.startswith("reading: ")
    assert "done" not in said


@pytest.mark.parametrize("error", [None, ValueError("x")])
def test_a_training_that_fails_at_its_start_is_not_called_done(
    error: ValueError | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    spoken = speak_at_once(monkeypatch)
    line = StatusLine(every_n_steps=1)
    line.begin()
    assert spoken.wait(5)
    line.close(error)
    line.close()
    said = capsys.readouterr().err
    assert said.startswith("starting training: ")
    assert said.count("starting training: done in 0:00") == (error is None)


@pytest.mark.parametrize("failure", [None, CheckpointError("no space")])
def test_a_checkpoint_that_could_not_be_written_is_not_called_done(
    failure: CheckpointError | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    spoken, io = speak_at_once(monkeypatch), DurableCheckpointIO()
    io.failure, io.writer = failure, threading.Thread(target=spoken.wait, args=(5,))
    io.writer.start()
    assert io.wait() is failure
    said = capsys.readouterr().err
    assert said.startswith("writing the checkpoint: ")
    assert said.count("writing the checkpoint: done in 0:00") == (failure is None)


def speak_at_once(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let every phase print its first line at once; return what is set then."""
    monkeypatch.setattr(module, "FIRST_LINE", 0.01)
    spoken = threading.Event()
    monkeypatch.setattr(module, "mention", lambda *lines: (mention(*lines), spoken.set()))
    return spoken


def test_quiet_leaves_results_warnings_and_errors(monkeypatch: pytest.MonkeyPatch):
    stream = attach(monkeypatch, 80)
    be_quiet(True)
    line = StatusLine(every_n_steps=1)
    line.begin()
    line.show(1, 1, logged(1, 1))
    line.close()
    with progress("reading", total=3) as advance:
        advance(1)
        inform("data: 3 samples")
        mention("next commands:")
        say("a result")
        notice("a warning")
    assert stream.written == "a result\na warning\n"


def test_nothing_is_shown_by_other_ranks_in_library_use_and_by_background_threads(monkeypatch: pytest.MonkeyPatch):
    stream = attach(monkeypatch, 80)

    def work() -> None:
        with progress("downloading", total=3) as advance:
            advance(1)

    with showing_progress(is_first=False):
        work()
        assert not on_terminal()
        notice("error: rank 1: x")
    assert stream.written == "\r\x1b[Kerror: rank 1: x\n"  # over the line that rank 0 draws
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    close()  # leaves `showing_progress`, as in library use
    work()
    assert stream.written == "\r\x1b[Kerror: rank 1: x\n"


def test_a_forked_worker_writes_over_the_line_and_never_draws_it(monkeypatch: pytest.MonkeyPatch):
    stream = attach(monkeypatch, 80)
    with progress("training"):
        live = module._live
        module._forget()
        assert sys.stderr is sys.stdout is stream
        with progress("downloading"):
            notice("waiting for a shard")
    assert stream.written.endswith("\r\x1b[Kwaiting for a shard\n")
    assert "downloading" not in stream.written
    live.stop()  # a fork has no thread that draws


def test_before_a_sudden_exit_the_line_is_removed(monkeypatch: pytest.MonkeyPatch):
    stream = attach(monkeypatch, 80)
    with progress("training"):
        close()
        notice("error: rank 1: killed")
        assert stream.screen.rows() == ["error: rank 1: killed", ""]
    assert stream.screen.rows() == ["error: rank 1: killed", ""]
