"""Which rank failed first, and why: the others see no more than that a connection closes, or nothing at all."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from openslip import signals, slurm
from openslip.distributed import of_all_ranks, rank, world_size
from openslip.durable import finish_writes
from openslip.errors import UserError, first_line
from openslip.terminal import notice

EVERY = 0.5  # seconds between looks at the other ranks
PATIENCE = 3.0  # seconds: a rank that fails needs some to say so, and one that is told of it to leave in order
GRACE = 10.0  # seconds that the first rank, which keeps the store, waits for the others at the end
RANK_KEYS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")  # the first that is set tells
KILLED = 137  # the exit code that shells give a process after SIGKILL


class Failure(NamedTuple):
    """The first cause of the end of a run."""

    rank: int
    exit_code: int
    said: str


class RankError(UserError):
    """The first cause as every rank reports it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"rank {failure.rank}: {failure.said}")
        self.exit_code = failure.exit_code


class Ranks:
    """The processes of a run as one of them sees them; all ranks make theirs at the same time."""

    def __init__(self) -> None:
        self.rank = rank()
        self.host = socket.gethostname()
        self.processes: list[tuple[str, int]] = of_all_ranks((self.host, os.getpid()))
        self.store: Any = dist.distributed_c10d._get_default_store()
        self.known: Failure | None = None
        self.over = threading.Event()
        threading.Thread(target=self.watch, name="ranks", daemon=True).start()

    def first_cause(self, error: Exception) -> Failure:
        """Why the run ends: this rank's error, unless another one's came before it or has caused it."""
        if is_consequence(error):
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                if failure := self.told() or self.dead():
                    return self.tell(failure)
                time.sleep(EVERY / 5)
        return self.tell(failure_of(error, self.rank))

    def tell(self, failure: Failure) -> Failure:
        """Tell all ranks of a failure; returns the first that any rank told of."""
        if self.known is None:
            first = self.ask("compare_set", "openslip/failure", "", json.dumps(failure))
            self.known = failure if first is None else Failure(*json.loads(first))
        return self.known

    def told(self) -> Failure | None:
        """The failure that a rank told of, also once the store has ended with the first rank."""
        if self.known is None and (told := self.read("openslip/failure")):
            self.known = Failure(*json.loads(told))
        return self.known

    def read(self, key: str) -> bytes | None:
        """What a rank has stored; None without waiting for it."""
        return self.ask("get", key) if self.ask("check", [key]) else None

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the store returns; None for good once the store has ended with the first rank."""
        try:
            return getattr(self.store, method)(*arguments)
        except Exception:  # of several kinds, and each attempt would print a stack of its own
            self.store = None
            return None

    def dead(self) -> Failure | None:
        """A rank on this machine whose process is gone and that has not left in order."""
        for number, (host, process) in enumerate(self.processes):
            if host == self.host and is_dead(process) and not self.has_left(number):
                said = f"process {process} was killed, often for want of memory; the same command resumes the run"
                return Failure(number, KILLED, said)
        return None

    def has_left(self, number: int) -> bool:
        return bool(self.ask("check", [f"openslip/left/{number}"]))

    def leave(self) -> None:
        """Tell the others that the end of this process is no failure."""
        self.ask("set", f"openslip/left/{self.rank}", "")
        if self.rank == 0:  # whose end the others could otherwise not tell from a failure
            left = [f"openslip/left/{number}" for number in range(len(self.processes))]
            self.ask("wait", left, timedelta(seconds=GRACE))

    def watch(self) -> None:
        """End this process where the main thread waits for a rank that has failed; pass signals on to all ranks."""
        while not self.over.wait(EVERY):
            self.pass_on_signals()
            failure = self.told() or self.dead()
            if failure and not self.over.wait(PATIENCE + 1):
                notice(f"error: {RankError(self.tell(failure))}", below=True)
                finish_writes()  # the watchdog ends them
                os._exit(failure.exit_code)

    def pass_on_signals(self) -> None:
        """A signal to one rank stops all, also those that wait for data and would not notice."""
        if number := signals.seen():
            self.ask("set", "openslip/signal", str(int(number)))
        elif told := self.read("openslip/signal"):
            os.kill(os.getpid(), int(told))


_ranks: Ranks | None = None


def meet() -> None:
    """Begin to watch the other ranks; all ranks call it."""
    global _ranks
    if world_size() > 1:
        _ranks = Ranks()


def tell(exit_code: int, said: str) -> None:
    """Tell the other ranks why this process ends, where no exception does."""
    if _ranks is not None:
        _ranks.tell(Failure(_ranks.rank, exit_code, said))


@contextmanager
def together() -> Iterator[None]:
    """Let the ranks of a run end with the first cause of its end.

    Raises:
        RankError: on every rank, with that rank's exit code.
    """
    try:
        yield
    except Exception as error:
        if _ranks is None:
            raise
        failure = _ranks.first_cause(error)
        _ranks.over.set()
        if failure.rank == _ranks.rank == 0:
            time.sleep(PATIENCE)  # the others read from this process why it ends
        raise RankError(failure) from error
    except BaseException:
        end_watch()
        raise
    end_watch()


@contextmanager
def named() -> Iterator[None]:
    """Name the rank in an error of a process that is not the first, as the environment has it before the ranks meet."""
    try:
        yield
    except RankError:
        raise
    except Exception as error:
        if slurm.is_first_task():
            raise
        number = next(int(os.environ[key]) for key in RANK_KEYS if key in os.environ)
        raise RankError(failure_of(error, number)) from error


def failure_of(error: Exception, number: int) -> Failure:
    """An error of a rank as what all ranks report."""
    if isinstance(error, UserError):
        return Failure(number, error.exit_code, str(error))
    return Failure(number, 1, f"{type(error).__name__}: {first_line(error)} (debug=true shows the traceback)")


def end_watch() -> None:
    if _ranks is not None:
        _ranks.over.set()
        _ranks.leave()


def is_consequence(error: Exception) -> bool:
    """Whether an error says no more than that communication with another rank has failed."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))


def is_dead(process: int) -> bool:
    """Whether a process of this machine has ended, a child that nobody has waited for included."""
    if not Path("/proc/self").exists():
        return False
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"
