"""Features of images and texts, computed by all ranks together and identical to those that one process computes."""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from openslip.data.image.eval_transform import EvalTransform
from openslip.data.loader import HELD, Loader, check_shared_memory, start_worker
from openslip.data.source import Source
from openslip.distributed import fail_together, gather, of_all_ranks, on_every_rank, rank, world_size
from openslip.errors import UserError
from openslip.inference.bundle import Bundle
from openslip.progress import progress

PREFETCH = 2  # batches that each worker prefetches
SETTING = "the evaluation's num_workers"
TEXTS_PER_BATCH = 256  # the unit in which texts are distributed over ranks


def text_features(bundle: Bundle, texts: Sequence[str]) -> Float[Tensor, "texts embed"]:
    """Encode texts to unit-length features in their order; ranks share the work, so all of them must call this.

    Equal texts are encoded once, so that their features are equal to the last bit.
    """
    distinct = sorted(set(texts))  # sorted, because texts that begin alike are encoded faster together
    batches = rank_batches(len(distinct), TEXTS_PER_BATCH)

    def encode() -> list[Tensor]:
        encoded = []
        with progress("texts", total=sum(map(len, batches))) as advance:
            for batch in batches:
                encoded.append(bundle.encode_text([distinct[row] for row in batch]))
                advance(len(batch))
        return encoded

    features = gather_batches(on_every_rank(encode), len(distinct), TEXTS_PER_BATCH, bundle.device)
    place = {text: row for row, text in enumerate(distinct)}
    return features[torch.tensor([place[text] for text in texts], device=bundle.device)]


def image_batches(
    bundle: Bundle, source: Source, *, batch_size: int, num_workers: int, labels: bool = True
) -> Generator[tuple[Float[Tensor, "batch 3 height width"], Int64[Tensor, " batch"]], None, None]:
    """Yield this rank's batches of transformed images, on the device, and their labels, on the CPU.

    `rank_batches` decides which samples belong to which rank and batch. If a batch cannot be read on one rank, all
    ranks fail; so do they if an error is thrown into the iterator (`throw`), as when a rank has too little memory.

    Args:
        bundle: bundle whose transform and device are used.
        source: source of images and labels.
        batch_size: images per batch.
        num_workers: processes that decode images; 0 decodes in this process.
        labels: whether a sample without a label is an error; otherwise its label is -1.

    Raises:
        UserError: a sample has no label, its image cannot be read, or /dev/shm is too small for the batches; or
            another rank has failed.
        Preempted: some rank has received a signal to stop.
    """
    planned = rank_batches(len(source), batch_size)
    if num_workers:
        largest = min(batch_size, len(source)) * 3 * bundle.transform.size**2 * torch.float32.itemsize
        count = min(PREFETCH * num_workers + HELD, len(planned))
        on_every_rank(lambda: check_shared_memory(count, largest, SETTING))
    loader = Loader(
        _Images(source, bundle.transform, labels),
        batch_sampler=planned,
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        pin_memory=bundle.device.type == "cuda",
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # without it, the loader would draw from training's random state
    )
    loader.setting, loader.fails_together = SETTING, True
    batches: Iterator[Any] = iter(loader)
    with progress("images", total=sum(map(len, planned))) as advance:
        for _ in range(math.ceil(math.ceil(len(source) / batch_size) / world_size())):
            batch = next(batches, None)
            if batch is None:  # a rank with one batch less still fetches as often: each fetch synchronises ranks
                break
            image, label = batch
            try:
                yield image.to(bundle.device, non_blocking=True), label
            except Exception as error:  # raised by the consumer; the next fetch, or the line below, tells all ranks
                loader.failure = error
            advance(len(label))
        fail_together(loader.failure)


def rank_batches(num_rows: int, batch_size: int) -> list[list[int]]:
    """List the row indices of this rank's batches: batch b belongs to rank b modulo the world size.

    No batch is padded: every batch holds the same rows as in one process, so that its result is identical to the last
    bit.
    """
    starts = range(0, num_rows, batch_size)[rank() :: world_size()]
    return [list(range(start, min(start + batch_size, num_rows))) for start in starts]


def gather_batches(
    batches: list[Tensor], num_rows: int, batch_size: int, device: torch.device
) -> Shaped[Tensor, "all ..."]:
    """Gather the rows of all ranks' batches on every rank, in their original order.

    Args:
        batches: this rank's batches, as planned by `rank_batches`.
        num_rows: rows on all ranks together.
        batch_size: rows per batch, except for the last one.
        device: device of the result if there are several ranks.
    """
    if world_size() == 1:
        return torch.cat(batches)
    # A rank without a batch learns the shape and dtype of a row from the others.
    shape, dtype = next(row for row in of_all_ranks(batches and (batches[0].shape[1:], batches[0].dtype)) if row)
    batches_per_rank = math.ceil(math.ceil(num_rows / batch_size) / world_size())
    padded = torch.zeros(batches_per_rank * batch_size, *shape, dtype=dtype, device=device)
    if batches:
        rows = torch.cat(batches)
        padded[: len(rows)] = rows
    gathered = gather(padded, with_grad=False).view(world_size(), batches_per_rank, batch_size, *shape)
    # Only the last batch of all can be short, so all padding follows the rows once the batches are in order.
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
