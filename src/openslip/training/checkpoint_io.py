"""How Lightning saves and reads a run's checkpoints: durably, checked, and without running what stands in them."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from openslip.distributed import from_first_rank, rank
from openslip.durable import WRITER, Hashing, durable
from openslip.errors import CheckpointError, UserError, first_line
from openslip.inference.files import read, why_unwritten
from openslip.run.checkpoints import finish, forget_after, newest_whole, saved
from openslip.terminal import notice
from openslip.training.callbacks.finite import refuse_non_finite
from openslip.training.host_copy import HostCopy

PAUSES = (1.0, 4.0)  # seconds before each new attempt: file servers recover
HEADROOM = 2  # times the size must be free: a disk that full fills up elsewhere as well


class DurableCheckpointIO(CheckpointIO):
    """Copies what is to be saved, and writes the copy in a thread while training continues.

    Lightning's own writes through TMPDIR, which tears the old file where that is another file system.

    Args:
        config: of the run, as in its config.yaml; kept in every checkpoint, so that it is told from another run's.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = config
        self.host_copy = HostCopy()
        self.writer: threading.Thread | None = None
        self.failure: UserError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Begin a save; `wait` returns its error, if any. The first rank alone saves, and must tell the others.

        Raises:
            UserError: the save before has failed.
        """
        if failure := self.wait():
            raise failure
        checkpoint["openslip"]["run"] = self.config
        content = self.host_copy.of(checkpoint)
        self.failure = CheckpointError(f"checkpoint {path} was not written: the thread that writes it has ended")
        self.writer = threading.Thread(target=self.write, args=(content, Path(path)), name=WRITER)
        self.writer.start()

    def wait(self) -> UserError | None:
        """Wait for the save in flight, if there is one; returns why it has failed, once."""
        if self.writer is not None:
            self.writer.join()
        failure, self.writer, self.failure = self.failure, None, None
        return failure

    def has_failed(self) -> bool:
        """Whether the last save is over and has failed; waits for nothing."""
        return self.writer is not None and not self.writer.is_alive() and self.failure is not None

    def write(self, content: dict[str, Any], path: Path) -> None:
        """Write the copy: the work of the thread, in which nothing may be raised."""
        try:
            step = content["openslip"]["step"]
            refuse_non_finite(content.get("state_dict", {}), step)
            write(content, path, step)
            self.failure = None
        except UserError as error:
            self.failure = error
        except BaseException as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            self.failure = CheckpointError(f"checkpoint {path} could not be written ({why}); {before(path)}")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The newest whole checkpoint of a folder; the first rank alone reads it twice, to check it."""
        newest: Path | UserError | None = None
        if rank() == 0:
            try:
                checkpoint = newest_whole(Path(path))
                forget_after(checkpoint)
                newest = checkpoint.path
            except UserError as error:
                newest = error
        newest = from_first_rank(newest)
        if isinstance(newest, UserError):
            raise newest
        assert newest is not None
        return read(newest)

    def remove_checkpoint(self, path: Any) -> None:
        """Never asked for: `finish` keeps what must be kept."""
        raise NotImplementedError


def write(content: dict[str, Any], path: Path, step: int) -> None:
    """Write a checkpoint durably, in a few attempts.

    Raises:
        CheckpointError: none of them succeeded; nothing is left of them.
    """
    reason = ""
    for pause in (*PAUSES, None):
        try:
            check_space(path.parent, size_of(content))
            with durable(path) as file:
                hashing = Hashing(file)
                torch.save(content, hashing)  # pyright: ignore[reportArgumentType]
            finish(path, step, hashing)
            return
        except (OSError, RuntimeError) as error:
            reason = why_unwritten(error)
        except CheckpointError as error:  # no room
            reason = str(error)
        if pause is not None:
            notice(f"checkpoint {path} could not be written ({reason}): tried again in {pause:.0f} s", below=True)
            time.sleep(pause)
    raise CheckpointError(
        f"checkpoint {path} could not be written ({reason}): make room or mend the file system; {before(path)}"
    )


def before(path: Path) -> str:
    """What there is to resume from where a checkpoint could not be written."""
    if not saved(path.parent):
        return "there is none before it"
    return "the checkpoints before it are whole, and the same command resumes the run"


def size_of(content: Any) -> int:
    """Bytes of the tensors in a nest of dicts and lists."""
    return sum(leaf.nbytes for leaf in tree_leaves(content) if isinstance(leaf, Tensor))


def check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < HEADROOM * size:
        raise CheckpointError(f"{free / 1e6:.1f} MB free, {HEADROOM * size / 1e6:.1f} MB needed in {folder}")
