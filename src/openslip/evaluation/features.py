"""Features of images and texts, computed by all ranks together and the same as in one process."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from openslip.data.image.eval_transform import EvalTransform
from openslip.data.loader import HELD, Loader, check_shared_memory, start_worker
from openslip.data.source import Source
from openslip.distributed import gather, of_all_ranks, rank, world_size
from openslip.errors import UserError
from openslip.inference.bundle import Bundle

PREFETCH = 2  # batches that each worker holds ready
SETTING = "the evaluation's num_workers"
TEXTS_PER_BATCH = 256  # what a rank takes at a time


def text_features(bundle: Bundle, texts: Sequence[str]) -> Float[Tensor, "texts embed"]:
    """Unit-length features in the order of `texts`; the ranks share the work, so all of them must call this."""
    batches = rank_batches(len(texts), TEXTS_PER_BATCH)
    encoded = [bundle.encode_text([texts[row] for row in batch]) for batch in batches]
    return gather_batches(encoded, len(texts), TEXTS_PER_BATCH, bundle.device)


def image_batches(
    bundle: Bundle, source: Source, *, batch_size: int, num_workers: int, labels: bool = True
) -> Iterator[tuple[Float[Tensor, "batch 3 height width"], Int64[Tensor, " batch"]]]:
    """This rank's transformed images, on the device, and their labels, on the CPU, in the order of `rank_batches`.

    Args:
        bundle: whose transform and device are used.
        source: of the images.
        batch_size: images per batch.
        num_workers: processes that decode; 0 decodes in this one.
        labels: whether a sample without a label is an error; else its label is -1.

    Raises:
        UserError: a sample has no label, or its image cannot be read, or /dev/shm has no room for the batches.
        Preempted: a signal has asked some rank to stop.
    """
    planned = rank_batches(len(source), batch_size)
    if num_workers:
        largest = min(batch_size, len(source)) * 3 * bundle.transform.size**2 * torch.float32.itemsize
        check_shared_memory(min(PREFETCH * num_workers + HELD, len(planned)), largest, SETTING)
    loader = Loader(
        _Images(source, bundle.transform, labels),
        batch_sampler=planned,
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        pin_memory=bundle.device.type == "cuda",
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # without its own, the loader draws from the training's
    )
    loader.setting = SETTING
    batches: Iterator[Any] = iter(loader)
    for _ in range(math.ceil(math.ceil(len(source) / batch_size) / world_size())):
        batch = next(batches, None)
        if batch is None:  # this rank's share is one batch shorter, yet it fetches as often
            return
        image, label = batch
        yield image.to(bundle.device, non_blocking=True), label


def rank_batches(num_rows: int, batch_size: int) -> list[list[int]]:
    """This rank's batches of rows.

    Batch b belongs to rank b modulo the world size, and none is padded: every batch holds the same rows as in one
    process, so its arithmetic is the same to the last bit.
    """
    starts = range(0, num_rows, batch_size)[rank() :: world_size()]
    return [list(range(start, min(start + batch_size, num_rows))) for start in starts]


def gather_batches(
    batches: list[Tensor], num_rows: int, batch_size: int, device: torch.device
) -> Shaped[Tensor, "all ..."]:
    """The rows of all ranks' batches of `rank_batches` in their original order, on every rank."""
    if world_size() == 1:
        return torch.cat(batches)
    # A rank without a batch does not know what a row is.
    shape, dtype = next(row for row in of_all_ranks(batches and (batches[0].shape[1:], batches[0].dtype)) if row)
    batches_per_rank = math.ceil(math.ceil(num_rows / batch_size) / world_size())
    padded = torch.zeros(batches_per_rank * batch_size, *shape, dtype=dtype, device=device)
    if batches:
        rows = torch.cat(batches)
        padded[: len(rows)] = rows
    gathered = gather(padded, with_grad=False).view(world_size(), batches_per_rank, batch_size, *shape)
    # Only the very last batch can be short, so padding stands behind all rows once batches are back in order.
    return gathered.transpose(0, 1).reshape(-1, *shape)[:num_rows]


@dataclass(frozen=True)
class _Images(Dataset):
    source: Source
    transform: EvalTransform
    labels: bool

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self.source[index]
        label = -1 if sample.label is None and not self.labels else sample.label
        if label is None:
            raise UserError(
                f"sample {sample.key!r} has no label: this evaluation needs a .cls file beside every "
                "image, or a folder of images per class"
            )
        if label < 0 and self.labels:
            raise UserError(f"sample {sample.key!r} has label {label}: expected 0 or more")
        return self.transform.read(sample.image, sample.key), label
