"""When one of several ranks fails, all end soon, with its exit code, and say last what it was."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import pytest
from marks import slow
from pytorch_lightning.strategies.launchers import subprocess_script
from torch.distributed import DistError
from trainings import RUN, two_ranks

from openslip.durable import WRITER
from openslip.run import ranks as ranks_module
from openslip.run.ranks import Failure, Ranks, is_consequence
from openslip.training.lightning import watch_launched_ranks

ROOT = Path(__file__).parents[2]
DATA = "data.source._target_=disturbances.SlowSource"
NO_PROCESS = 1 << 30  # more than Linux numbers


@pytest.mark.parametrize("failing", [0, slow(1)])
@pytest.mark.parametrize(
    ("disturbance", "exit_code", "said"),
    [("data_error 41-9999", 4, "sample"), ("kill 6", 137, "process {} was killed, often because memory ran out")],
)
def test_all_ranks_end_with_the_first_cause(place: Path, failing: int, disturbance: str, exit_code: int, said: str):
    name = f"cause_{disturbance[:4]}{failing}"
    ranks = two_ranks(place, *RUN, DATA, f"name={name}", log=f"{name}-", DISTURB=f"{disturbance} {failing}")
    code_of_failing = ranks[failing].wait()
    ended = time.monotonic()
    codes = [code_of_failing, ranks[1 - failing].wait()]
    assert time.monotonic() - ended < 15
    expected = f"error: rank {failing}: {said.format(ranks[failing].pid)}"
    for rank, code in zip((ranks[failing], ranks[1 - failing]), codes, strict=True):
        if code != -signal.SIGKILL:
            assert code == exit_code, rank.said()
            assert rank.said().rstrip().splitlines()[-1].startswith(expected)


def test_a_rank_that_waits_for_data_ends_when_another_is_killed(place: Path):
    ranks = two_ranks(place, *RUN, DATA, "name=cause_wait", log="cause_wait-", DISTURB="slow_data 41-9999 1")
    ranks[0].wait_for("step 5/")
    time.sleep(0.5)
    killed = time.monotonic()
    os.kill(ranks[0].pid, signal.SIGKILL)
    ranks[0].process.join()
    assert ranks[1].wait() == 137
    assert time.monotonic() - killed < 15
    assert ranks[1].said().splitlines()[-1].startswith(f"error: rank 0: process {ranks[0].pid} was killed")


def test_a_store_that_has_ended_is_asked_once_also_by_two_threads():
    ranks = object.__new__(Ranks)  # without its thread
    ranks.asking, ranks.store = threading.Lock(), (ended := EndedStore())
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ranks.read, ["openslip/failure", "openslip/signal"])) == [None, None]
    assert ended.calls == 1  # each call makes PyTorch print a stack trace, which must not follow the error


class EndedStore:
    calls = 0

    def check(self, keys: list[str]) -> bool:
        self.calls += 1
        time.sleep(0.2)  # as long as PyTorch takes to print where the call failed
        raise DistError("Connection reset by peer")


def test_only_a_process_of_this_machine_can_be_found_dead():
    """On another node, its number says nothing here."""
    ranks = object.__new__(Ranks)  # without its thread
    ranks.asking, ranks.store, ranks.host = threading.Lock(), None, "here"
    ranks.processes = [("there", NO_PROCESS), ("here", os.getpid())]
    assert ranks.dead() is None
    ranks.processes.append(("here", NO_PROCESS))
    failure = ranks.dead()
    assert failure is not None
    assert failure.rank == 2


def test_a_rank_that_ends_for_another_first_completes_its_checkpoint(monkeypatch: pytest.MonkeyPatch):
    happened: list[str | int] = []

    def write() -> None:
        time.sleep(0.1)
        happened.append("written")

    def end(code: int) -> None:
        happened.append(code)
        sys.exit()

    ranks = object.__new__(Ranks)  # without its thread
    ranks.asking, ranks.store, ranks.over, ranks.known = threading.Lock(), None, threading.Event(), Failure(1, 4, "x")
    monkeypatch.setattr(ranks_module, "EVERY", 0)
    monkeypatch.setattr(ranks_module, "PATIENCE", -1)
    monkeypatch.setattr(os, "_exit", end)
    threading.Thread(target=write, name=WRITER).start()
    with pytest.raises(SystemExit):
        ranks.watch()
    assert happened == ["written", 4]


def test_a_rank_that_is_killed_in_its_set_up_is_named_with_the_exit_code_of_shells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(subprocess_script, "_launch_process_observer", None)
    watch_launched_ranks(lambda: None)
    running, killed = (Mock(spec=subprocess.Popen, poll=lambda code=code: code) for code in (None, -signal.SIGKILL))
    subprocess_script._launch_process_observer([running, killed])  # pyright: ignore[reportOptionalCall]
    for thread in threading.enumerate():
        if thread.name == "launched ranks":
            thread.join()
    assert codes == [137]
    assert "error: rank 2: killed by signal 9 in its set-up" in capsys.readouterr().err
    running.kill.assert_called_once()


def test_an_error_of_communication_is_no_cause():
    assert is_consequence(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"))
    assert not is_consequence(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(
    ("disturbance", "exit_code", "said"),
    [("data_missing 0 1", 4, "no such shard here"), slow("stuck_setup 0 1", 137, "killed by signal 9 in its set-up")],
)
def test_a_rank_that_fails_before_the_ranks_have_met_is_named(place: Path, disturbance: str, exit_code: int, said: str):
    words = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.num_workers=0"]
    words += ["data.source._target_=disturbances.FailsToOpen", "name=unmet"]
    run = [word for word in RUN if word not in ("trainer=cpu", "data.num_workers=0")]
    command = [sys.executable, str(ROOT / "train.py"), *words, *run]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests' / 'support'}", "DISTURB": disturbance}
    process = subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
    if exit_code == 137:
        os.kill(child_of(process.pid), signal.SIGKILL)
    lines = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode == exit_code
    assert lines[-1] == f"error: rank 1: {said}"
    assert not (place / "runs" / "unmet").exists()


def child_of(process: int) -> int:
    """The first rank that a process starts."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes():  # not another command that it runs
                return int(child)
        time.sleep(0.1)
    raise AssertionError("no rank was started")
