"""Contract: an evaluation gives a model's figures, the same ones in training and afterwards."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from openslip import signals
from openslip.data.image.decode import open_image
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.source import Source
from openslip.distributed import any_rank, gather, rank, world_size
from openslip.errors import UserError


class Evaluation(ABC):
    """`run` returns figures, and leaves in `arrays` (none of them of objects) what the report shows."""

    arrays: dict[str, np.ndarray]

    @abstractmethod
    def run(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Figures of the model, which is on `device`; every rank calls this and gets the same ones."""

    @abstractmethod
    def headline(self, figures: dict[str, float]) -> str:
        """One line that tells what `run` returned."""


def top1_line(title: str, figures: dict[str, float]) -> str:
    """The headline of a classification."""
    return f"{title}: {figures['top1']:.1f} % (chance {figures['chance']:.1f} %)"


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, no gradients, full float32 (no autocast, no TF32); all comes back, random state too."""
    modes = [(module, module.training) for module in model.modules()]
    matmul_precision, allow_tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    model.eval()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            yield
    finally:
        if device.type == "cuda":
            torch.set_float32_matmul_precision(matmul_precision)
            torch.backends.cudnn.allow_tf32 = allow_tf32
        for module, training in modes:
            module.training = training


def rank_batches(num_rows: int, batch_size: int) -> list[list[int]]:
    """This rank's batches of rows.

    Whole batches are dealt out, batch b to rank b modulo the world size, and none is padded: every batch
    holds the same rows as in one process, so its arithmetic is the same to the last bit.
    """
    starts = range(0, num_rows, batch_size)[rank() :: world_size()]
    return [list(range(start, min(start + batch_size, num_rows))) for start in starts]


def gather_batches(rows: Shaped[Tensor, "local ..."], num_rows: int, batch_size: int) -> Shaped[Tensor, "all ..."]:
    """The rows of all ranks' batches in their original order."""
    if world_size() == 1:
        return rows
    batches_per_rank = math.ceil(math.ceil(num_rows / batch_size) / world_size())
    padded = rows.new_zeros(batches_per_rank * batch_size, *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = gather(padded, with_grad=False).view(world_size(), batches_per_rank, batch_size, *rows.shape[1:])
    # Only the very last batch can be short, so padding stands behind all rows once batches are back in order.
    return gathered.transpose(0, 1).reshape(-1, *rows.shape[1:])[:num_rows]


def labelled_batches(
    source: Source,
    transform: EvalTransform,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Iterator[tuple[Float[Tensor, "batch 3 height width"], Int64[Tensor, " batch"]]]:
    """This rank's pictures and labels, on the device, in the order of `rank_batches`.

    Raises:
        UserError: a sample has no label, or its picture cannot be read.
        Preempted: a signal has asked some rank to stop.
    """
    loader = DataLoader(
        _Labelled(source, transform),
        batch_sampler=rank_batches(len(source), batch_size),
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=signals.ignore,
        generator=torch.Generator(),  # without its own, the loader draws from the training's
    )
    batches = iter(loader)
    for _ in range(math.ceil(math.ceil(len(source) / batch_size) / world_size())):
        if any_rank(signals.received() is not None):
            raise signals.Preempted
        batch = next(batches, None)
        if batch is None:  # this rank's part is one batch shorter, yet it is asked as often
            return
        if isinstance(batch, UserError):
            raise batch
        image, label = batch
        yield image.to(device, non_blocking=True), label.to(device, non_blocking=True)


_Item = tuple[Tensor, int] | UserError


class _Labelled(Dataset):
    # An error is returned, not raised: the loader would wrap one from a worker in a page of traceback.
    def __init__(self, source: Source, transform: EvalTransform) -> None:
        self.source = source
        self.transform = transform

    def __getitem__(self, index: int) -> _Item:
        try:
            sample = self.source[index]
            if sample.label is None:
                return UserError(
                    f"sample {sample.key!r} has no label: an evaluation needs a .cls file beside every "
                    "picture, or a folder of pictures per class"
                )
            if sample.label < 0:
                return UserError(f"sample {sample.key!r} has label {sample.label}: expected 0 or more")
            return self.transform(open_image(sample.image, sample.key)), sample.label
        except UserError as error:
            return error


def _collate(items: list[_Item]) -> tuple[Tensor, Tensor] | UserError:
    images, labels = [], []
    for item in items:
        if isinstance(item, UserError):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels)
