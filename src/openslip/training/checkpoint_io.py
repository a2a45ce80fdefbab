"""How Lightning saves and reads a run's checkpoints: durably, checked, and without running what stands in them."""

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from openslip.distributed import from_first_rank, rank
from openslip.durable import Hashing, durable
from openslip.errors import CheckpointError, UserError
from openslip.inference.files import read, why_unwritten
from openslip.run.checkpoints import finish, forget_after, newest_whole, saved
from openslip.terminal import notice

PAUSES = (1.0, 4.0)  # seconds before each new attempt: file servers recover
HEADROOM = 2  # times the size must be free: a disk that full fills up elsewhere as well


class DurableCheckpointIO(CheckpointIO):
    """Lightning's own writes through TMPDIR, which tears the old file where that is another file system.

    Args:
        config: of the run, as in its config.yaml; kept in every checkpoint, so that it is told from another run's.

    Attributes:
        failure: why the last save failed; the first rank alone writes, and must tell the others before it stops.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = config
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.failure = None
        path, reason = Path(path), ""
        checkpoint["openslip"]["run"] = self.config
        for pause in (*PAUSES, None):
            try:
                check_space(path.parent, size_of(checkpoint))
                with durable(path) as file:
                    hashing = Hashing(file)
                    torch.save(checkpoint, hashing)  # pyright: ignore[reportArgumentType]
                finish(path, checkpoint["openslip"]["step"], hashing)
                return
            except (OSError, RuntimeError) as error:
                reason = why_unwritten(error)
            except CheckpointError as error:  # no room
                reason = str(error)
            if pause is not None:
                notice(f"checkpoint {path} could not be written ({reason}): tried again in {pause:.0f} s", below=True)
                time.sleep(pause)
        before = "the checkpoints before it are whole, and the same command resumes the run"
        if not saved(path.parent):
            before = "there is none before it"
        self.failure = f"checkpoint {path} could not be written ({reason}): make room or mend the file system; {before}"

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


def size_of(content: Any) -> int:
    """Bytes of the tensors in a nest of dicts and lists."""
    return sum(leaf.nbytes for leaf in tree_leaves(content) if isinstance(leaf, Tensor))


def check_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < HEADROOM * size:
        raise CheckpointError(f"{free / 1e6:.1f} MB free, {HEADROOM * size / 1e6:.1f} MB needed in {folder}")
