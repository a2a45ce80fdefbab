"""Checkpoint plugin for Lightning: writes durably, verifies files, and never executes code stored in a checkpoint."""

import shutil
import threading
import time
from contextlib import suppress
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
from openslip.progress import progress
from openslip.run.checkpoints import finish, forget_after, newest_whole, saved
from openslip.terminal import notice
from openslip.training.callbacks.finite import refuse_non_finite
from openslip.training.host_copy import HostCopy

PAUSES = (1.0, 4.0)  # seconds before each further attempt, because a failing file server may recover
# Free space that a save needs, as a multiple of the checkpoint's size; other programs may write to the same disk.
HEADROOM = 2


class DurableCheckpointIO(CheckpointIO):
    """Copies the training state, and writes the copy in a thread while training continues.

    Lightning's own plugin writes through TMPDIR. If TMPDIR is on another file system, an interrupted save damages the
    old file.

    Args:
        config: the run's config, as in its config.yaml; stored in every checkpoint to identify its run.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = config
        self.host_copy = HostCopy()
        self.writer: threading.Thread | None = None
        self.failure: UserError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Begin to save in a thread; called on rank 0 only.

        The caller must tell the other ranks the error that `wait` returns.

        Raises:
            UserError: the previous save has failed.
        """
        if failure := self.wait():
            raise failure
        checkpoint["openslip"]["run"] = self.config
        content = self.host_copy.of(checkpoint)
        self.failure = CheckpointError(f"checkpoint {path} was not written: its writer thread ended early")
        self.writer = threading.Thread(target=self.write, args=(content, Path(path)), name=WRITER)
        self.writer.start()

    def wait(self) -> UserError | None:
        """Wait for the save in progress, if any, and return its error; the next call does not return it again."""
        if self.writer is not None:
            with suppress(UserError), progress("writing the checkpoint"):
                self.writer.join()
                if self.failure is not None:
                    raise self.failure  # so that the phase's line does not say that it is done
        failure, self.writer, self.failure = self.failure, None, None
        return failure

    def has_failed(self) -> bool:
        """Whether the last save has ended with an error; returns without waiting."""
        return self.writer is not None and not self.writer.is_alive() and self.failure is not None

    def write(self, content: dict[str, Any], path: Path) -> None:
        """Write the copy in the writer thread; errors are kept for `wait`, because nobody would catch them here."""
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
        """Load the newest intact checkpoint of the folder `path` on every rank; rank 0 finds and verifies it."""
        newest: Path | UserError | None = None
        if rank() == 0:
            try:
                with progress("verifying the checkpoint"):
                    checkpoint = newest_whole(Path(path))
                forget_after(checkpoint)
                newest = checkpoint.path
            except UserError as error:
                newest = error
        newest = from_first_rank(newest)
        if isinstance(newest, UserError):
            raise newest
        assert newest is not None
        with progress("reading the checkpoint"):
            return read(newest)

    def remove_checkpoint(self, path: Any) -> None:
        """Not used: `finish` decides which checkpoints are kept."""
        raise NotImplementedError


def write(content: dict[str, Any], path: Path, step: int) -> None:
    """Write a checkpoint durably, with a few attempts.

    Raises:
        CheckpointError: all attempts failed; incomplete files are removed.
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
            notice(f"checkpoint {path} could not be written ({reason}); trying again in {pause:.0f} s")
            time.sleep(pause)
    raise CheckpointError(
        f"checkpoint {path} could not be written ({reason}): make room or repair the file system; {before(path)}"
    )


def before(path: Path) -> str:
    """Describe how a run can be resumed if the checkpoint at `path` could not be written."""
    if not saved(path.parent):
        return "the run has no earlier checkpoint"
    return "earlier checkpoints are intact, and the same command resumes the run"


def size_of(content: Any) -> int:
    """Return the total bytes of the tensors in nested dicts and lists."""
    return sum(leaf.nbytes for leaf in tree_leaves(content) if isinstance(leaf, Tensor))


def check_space(folder: Path, size: int) -> None:
    """Refuse to save a checkpoint of `size` bytes unless twice as much is free on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if free < HEADROOM * size:
        needed = f"{HEADROOM * size / 1e6:.1f} MB needed in {folder}"
        raise CheckpointError(f"{free / 1e6:.1f} MB free, {needed}, which is twice a checkpoint")
