"""Report which rank failed first and why: the other ranks only see a closed connection, or nothing at all."""

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
from openslip.errors import OtherRankError, UserError, described
from openslip.progress import close
from openslip.terminal import notice

EVERY = 0.5  # seconds between checks of the other ranks
PATIENCE = 3.0  # seconds that a failed rank gets to report its error, and that other ranks get to exit in order
GRACE = 10.0  # seconds that the first rank, which hosts the store, waits for the other ranks at the end
RANK_KEYS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")  # the first one that is set gives the rank
KILLED = 137  # the exit code that shells give a process after SIGKILL


class Failure(NamedTuple):
    """The failure that ended a run: the rank that failed first, its exit code and its message."""

    rank: int
    exit_code: int
    said: str


class RankError(UserError):
    """The error with which every rank reports the first failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"rank {failure.rank}: {failure.said}")
        self.exit_code = failure.exit_code
        self.failure = failure


class Ranks:
    """Watches the other ranks of a run from one of them; all ranks must create theirs at the same time."""

    def __init__(self) -> None:
        self.rank = rank()
        self.host = socket.gethostname()
        self.processes: list[tuple[str, int]] = of_all_ranks((self.host, os.getpid()))
        self.store: Any = dist.distributed_c10d._get_default_store()
        self.known: Failure | None = None
        self.over = threading.Event()
        self.asking = threading.Lock()
        self.watcher = threading.Thread(target=self.watch, name="ranks", daemon=True)
        self.watcher.start()

    def first_cause(self, error: Exception) -> Failure:
        """Return the failure that ended the run: this rank's error, unless another rank's came first or caused it."""
        if is_consequence(error):
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                if failure := self.told() or self.dead():
                    return self.tell(failure)
                time.sleep(EVERY / 5)
        return self.tell(failure_of(error, self.rank))

    def tell(self, failure: Failure) -> Failure:
        """Report a failure to all ranks; return the first failure that any rank has reported."""
        if self.known is None:
            first = self.ask("compare_set", "openslip/failure", "", json.dumps(failure))
            self.known = failure if first is None else Failure(*json.loads(first))
        return self.known

    def told(self) -> Failure | None:
        """Return the failure that a rank has reported, if any; it stays known after the store is gone."""
        if self.known is None and (told := self.read("openslip/failure")):
            self.known = Failure(*json.loads(told))
        return self.known

    def read(self, key: str) -> bytes | None:
        """Read what a rank has stored under a key; None, without waiting, if there is nothing."""
        return self.ask("get", key) if self.ask("check", [key]) else None

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the store; once the store has ended with the first rank, always return None."""
        with self.asking:  # one thread at a time: PyTorch prints a stack trace for each call that fails
            try:
                return getattr(self.store, method)(*arguments) if self.store is not None else None
            except Exception:  # several types
                self.store = None
                return None

    def dead(self) -> Failure | None:
        """Return the failure of a rank on this machine whose process has ended without `leave`, if there is one."""
        for number, (host, process) in enumerate(self.processes):
            if host == self.host and is_dead(process) and not self.has_left(number):
                said = f"process {process} was killed, often because memory ran out; the same command resumes the run"
                return Failure(number, KILLED, said)
        return None

    def has_left(self, number: int) -> bool:
        return bool(self.ask("check", [f"openslip/left/{number}"]))

    def all_failed(self, work: str, failed: bool) -> bool:
        """Do what the function `all_failed` does."""
        self.ask("set", f"openslip/{work}/{self.rank}", "failed" if failed else "done")
        outcomes = [f"openslip/{work}/{number}" for number in range(len(self.processes))]
        deadline = time.monotonic() + GRACE
        # Not by a blocking wait, which would also block the thread that watches the ranks.
        while not self.ask("check", outcomes):
            if self.store is None:
                raise dist.DistError("the first rank has ended")
            if failed and time.monotonic() > deadline:
                return False
            time.sleep(EVERY / 25)
        return all(self.ask("get", outcome) == b"failed" for outcome in outcomes)

    def leave(self) -> None:
        """Tell the other ranks that this process ends without a failure."""
        self.ask("set", f"openslip/left/{self.rank}", "")
        if self.rank == 0:  # it hosts the store, without which other ranks take its end for a failure
            left = [f"openslip/left/{number}" for number in range(len(self.processes))]
            self.ask("wait", left, timedelta(seconds=GRACE))

    def watch(self) -> None:
        """End this process if its main thread waits for a failed rank; pass signals on to all ranks."""
        while not self.over.wait(EVERY):
            self.pass_on_signals()
            failure = self.told() or self.dead()
            if failure and not self.over.wait(PATIENCE + 1):
                close()
                notice(f"error: {RankError(self.tell(failure))}")
                finish_writes()  # the watchdog limits how long this can take
                os._exit(failure.exit_code)

    def pass_on_signals(self) -> None:
        """Pass a signal on to all ranks, so that it also stops ranks that wait for data and would not notice."""
        if number := signals.seen():
            self.ask("set", "openslip/signal", str(int(number)))
        elif told := self.read("openslip/signal"):
            os.kill(os.getpid(), int(told))


_ranks: Ranks | None = None


def meet() -> None:
    """Start watching the other ranks; all ranks must call this."""
    global _ranks
    if world_size() > 1:
        _ranks = Ranks()


def tell(exit_code: int, said: str) -> None:
    """Tell the other ranks why this process ends if no exception tells them.

    Args:
        exit_code: exit code of this process.
        said: message that the other ranks report.
    """
    if _ranks is not None:
        _ranks.tell(Failure(_ranks.rank, exit_code, said))


def all_failed(work: str, failed: bool) -> bool:
    """Wait until all ranks have ended a piece of work, and return whether it failed on all of them.

    A rank on which it failed waits a few seconds only, because others may wait for this rank within the work. It must
    then raise its error.

    Args:
        work: name of the work, another one at each call; all ranks must call this.
        failed: whether the work failed on this rank.
    """
    return failed if _ranks is None else _ranks.all_failed(work, failed)


@contextmanager
def together() -> Iterator[None]:
    """Make all ranks of a run end with the error of the rank that failed first.

    Raises:
        RankError: raised on every rank, with the exit code of the rank that failed first.
    """
    try:
        yield
    except Exception as error:
        if _ranks is None:
            raise
        failure = _ranks.first_cause(error)
        _ranks.over.set()
        _ranks.watcher.join(PATIENCE)  # a stack trace that its last call of the store may print comes before the error
        if _ranks.rank == 0:
            time.sleep(PATIENCE)  # other ranks read the reason from the store in this process
        raise RankError(failure) from error
    except BaseException:
        end_watch()
        raise
    end_watch()


@contextmanager
def named() -> Iterator[None]:
    """Name the rank in errors of processes other than the first; before `meet`, the environment gives the rank."""
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
    """Describe an error of a rank as the failure that all ranks report."""
    if isinstance(error, UserError):
        return Failure(number, error.exit_code, str(error))
    return Failure(number, 1, f"{described(error)} (debug=true shows the traceback)")


def end_watch() -> None:
    if _ranks is not None:
        _ranks.over.set()
        _ranks.leave()


def is_consequence(error: Exception) -> bool:
    """Tell whether an error only says that another rank, or communication with it, has failed."""
    return isinstance(error, OtherRankError) or is_broken_connection(error)


def is_broken_connection(error: Exception) -> bool:
    """Tell whether an error says that communication with another rank has failed, which may have ended."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))


def is_dead(process: int) -> bool:
    """Tell whether a process on this machine has ended; a zombie process counts as ended."""
    if not Path("/proc/self").exists():
        return False
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"
