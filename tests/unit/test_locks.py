"""A file's lock is held by one process, never by the ones it forks, and not beyond its death."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from openslip import terminal
from openslip.errors import UserError
from openslip.locks import is_locked, locked


def is_free(path: Path) -> bool:
    try:
        with locked(path, wait=0.0):
            return True
    except BlockingIOError:
        return False


def test_a_lock_has_one_holder_and_is_free_afterwards(tmp_path: Path):
    with locked(tmp_path / "lock") as held:
        assert held
        assert not is_free(tmp_path / "lock")
    assert is_free(tmp_path / "lock")


def test_asking_for_a_lock_takes_it_from_nobody_and_changes_nothing(tmp_path: Path):
    (tmp_path / "lock").write_text("content")
    assert not is_locked(tmp_path / "lock")
    with locked(tmp_path / "lock", wait=0.0):
        assert is_locked(tmp_path / "lock")
        assert not is_free(tmp_path / "lock")
    assert is_free(tmp_path / "lock")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("lock", "content")]


def test_a_link_or_named_pipe_is_no_lock(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match=f"lock {tmp_path / 'link'} is a link"), locked(tmp_path / "link"):
        pass
    assert not (tmp_path / "target").exists()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=f"lock {tmp_path / 'pipe'} is no regular file"), locked(tmp_path / "pipe"):
        pass


def test_a_lock_is_free_after_an_error_and_its_file_keeps_its_content(tmp_path: Path):
    (tmp_path / "lock").write_text("content")
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
        raise ZeroDivisionError
    assert is_free(tmp_path / "lock")
    assert (tmp_path / "lock").read_text() == "content"


def test_waiting_ends_with_an_error_or_with_the_lock(tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, 0.5))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    started = time.monotonic()
    with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=0.15):
        pass
    assert 0.15 <= time.monotonic() - started < 0.45
    with locked(tmp_path / "lock", wait=10.0) as held:
        assert held
    process.join()


def test_a_long_wait_for_a_lock_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(terminal, "SAID_AFTER", 0.1)
    monkeypatch.setattr(terminal, "_quiet_until", 0.0)
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path, 0.5))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with locked(tmp_path / "lock", what="the index of x\x1b[2J") as held:
        assert held
    process.join()
    assert capsys.readouterr().err == "waiting for the index of x\\x1b[2J, which another process has locked\n"


def test_who_waits_for_a_lock_whose_file_is_removed_gets_that_of_the_new_file(tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(target=hold_and_remove, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with locked(tmp_path / "lock", wait=10.0):
        assert not (tmp_path / "held").exists()
        assert not is_free(tmp_path / "lock")
    assert is_free(tmp_path / "lock")
    process.join()


def hold_and_remove(folder: Path) -> None:
    with locked(folder / "lock"):
        (folder / "held").touch()
        time.sleep(0.3)
        (folder / "lock").unlink()
        (folder / "held").unlink()


def hold(folder: Path, seconds: float) -> None:
    with locked(folder / "lock"):
        (folder / "held").touch()
        time.sleep(seconds)


def hold_and_fork(folder: Path) -> None:
    with locked(folder / "lock"):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        (folder / "child").write_text(str(child))
        (folder / "held").touch()
        time.sleep(60)


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_process(tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(target=hold_and_fork, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    child = int((tmp_path / "child").read_text())
    try:
        assert not is_free(tmp_path / "lock")
        process.kill()
        process.join()
        os.kill(child, 0)  # it is still there
        assert is_free(tmp_path / "lock")
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_that_leaves_the_block_does_not_release_its_parents_lock(tmp_path: Path):
    parent = os.getpid()
    with locked(tmp_path / "lock"):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            assert not is_free(tmp_path / "lock")
    if os.getpid() != parent:
        os._exit(0)


def test_a_descriptor_stays_open(tmp_path: Path):
    with (tmp_path / "file").open("wb") as file:
        with locked(file.fileno()):
            assert not is_free(tmp_path / "file")
        assert is_free(tmp_path / "file")
        file.write(b"more")


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock") as held:
        assert not held
