"""A signal at any moment, the first milliseconds included, ends a process with 143."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from workers import work

from openslip import signals

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}

NOT_UNDER_NOHUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # as the tests themselves may run

WAITS = """
import time, sys
from openslip import signals
signals.catch()
{defer}
print("ready", flush=True)
while signals.received() is None: time.sleep(0.01)
print("noted", signals.received().name, flush=True)
time.sleep(30)
"""

# A mutex that is locked twice keeps Python from its handlers as a collective does.
STUCK = """
import ctypes
from openslip import signals
signals.catch()
{defer}
print("ready", flush=True)
mutex = ctypes.create_string_buffer(64)
ctypes.CDLL(None).pthread_mutex_lock(mutex)
ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""

SWALLOWS = """
import time
from openslip import signals
signals.catch()
{defer}
try:
    print("ready", flush=True)
    time.sleep(30)
except BaseException as error:
    raise RuntimeError("a library's own") from error
"""

FORKS = """
import os, signal, sys, time
from openslip import signals
signals.catch()
signals.defer()
if not (child := os.fork()):
    while True: time.sleep(1)
for _ in range(2):
    time.sleep(1.2)
    os.kill(child, signal.SIGUSR1)
time.sleep(0.5)
os.kill(child, signal.SIGKILL)
print("ready", flush=True)
sys.exit(0 if signals.received() is None else 1)
"""


def waiting(defer: bool, script: str = WAITS) -> subprocess.Popen:
    script = NOT_UNDER_NOHUP + script.format(defer="signals.defer()" if defer else "")
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


STOPPING = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP]


def test_these_signals_ask_a_run_to_stop():
    assert sorted(signals.STOPPING) == sorted(STOPPING)


@pytest.mark.parametrize("number", STOPPING)
def test_during_set_up_it_ends_at_once(number: int):
    process = waiting(defer=False)
    process.send_signal(number)
    said = process.communicate(timeout=10)[1]
    assert process.returncode == 143
    assert said == f"\nstopped by {signal.Signals(number).name} during set-up; no step was made\n"


def test_what_nohup_ignores_stays_ignored_and_the_rest_does_not():
    script = WAITS.format(defer="signals.defer()")
    process = subprocess.Popen(["nohup", sys.executable, "-c", script], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == b"noted SIGTERM\n"
    process.kill()
    process.communicate()


def test_later_the_first_is_noted_its_echo_is_not_a_second_and_a_second_ends_at_once():
    process = waiting(defer=True)
    assert process.stdout is not None
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "noted SIGUSR1\n"
    process.send_signal(signal.SIGUSR1)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert "second signal" in process.communicate(timeout=10)[1]
    assert process.returncode == 143


def test_a_second_one_ends_a_process_that_is_stuck_outside_python():
    process = waiting(defer=True, script=STUCK)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert "second signal" in process.communicate(timeout=10)[1]
    assert process.returncode == 143


def test_during_set_up_the_first_ends_a_process_that_is_stuck_outside_python():
    process = waiting(defer=False, script=STUCK)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 143
    assert said == "\nstopped by SIGUSR1 during set-up; no step was made\n"


def test_during_set_up_a_library_that_makes_an_error_of_it_does_not_change_the_exit_code():
    process = waiting(defer=False, script=SWALLOWS)
    process.send_signal(signal.SIGTERM)
    assert "a library's own" in process.communicate(timeout=10)[1]
    assert process.returncode == 143


def test_what_a_forked_process_gets_is_not_counted():
    process = waiting(defer=True, script=FORKS)
    said = process.communicate(timeout=10)[1]
    assert process.returncode == 0, said


@pytest.mark.parametrize("delay", [0.1, 1.5, 4.0])
def test_train_py_that_still_imports_leaves_nothing(tmp_path: Path, delay: float):
    command = [sys.executable, str(ROOT / "train.py"), "trainer=cpu"]
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_until_caught(process, signal.SIGTERM)
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert not list(tmp_path.rglob("*.tmp"))


def wait_until_caught(process: subprocess.Popen[str], number: int) -> None:
    """Wait until a process has a handler for a signal; before that, Python itself is not running yet."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1:  # pyright: ignore[reportOptionalSubscript]
            return
        time.sleep(0.02)
    raise AssertionError("no handler was installed")


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
def test_a_worker_obeys_the_process_that_started_it_alone(start_method: str):
    context = multiprocessing.get_context(start_method)
    ready = context.Event()
    worker = context.Process(target=work, args=(ready,), daemon=True)  # pyright: ignore[reportAttributeAccessIssue]
    worker.start()
    assert ready.wait(60)
    for name in ("TERM", "INT", "USR1", "USR2", "HUP"):
        subprocess.run(["sh", "-c", f"kill -{name} {worker.pid}"], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_a_signal_ends_a_set_up_that_waits_for_the_threads_of_a_download():
    """A server that never answers: the pool's threads would be waited for on the way out."""
    script = """
import time
from concurrent.futures import ThreadPoolExecutor
from openslip import signals
signals.MAIN_THREAD = 0.5
signals.catch()
with ThreadPoolExecutor(1) as pool:
    answer = pool.submit(time.sleep, 30)
    print("waits", flush=True)
    answer.result()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waits\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
