"""Batches for a training loop of your own: the samples, crops and captions of `openslip train`, from local shards."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.data import Sampler

from openslip.data.batches import Batches, Plan
from openslip.data.image.decode import TurboDecoder
from openslip.data.loader import BatchLoader
from openslip.data.order import Order, local_batch_size
from openslip.data.source import Source
from openslip.data.sources.shards import ShardSource
from openslip.data.view import View, key
from openslip.distributed import notice_once, rank, world_size
from openslip.terminal import notice


def open_dataset(
    shards: str | Path | list[str],
    *,
    views: Mapping[str, View],
    global_batch_size: int,
    seed: int = 0,
    num_workers: int = 0,
) -> "Dataset":
    """Open local tar shards as an iterable of batches; the shards are indexed first.

    Args:
        shards: a brace pattern, a folder, a glob, or a list of them.
        views: batch key to view, e.g. `{"image": RandomResizedCrop(...), "text": Caption(...)}`.
        global_batch_size: samples per batch, over all ranks of torch.distributed if it is initialised.
        seed: decides the order of the samples, the crops and the captions.
        num_workers: processes that decode; 0 decodes in this process.

    Raises:
        UserError: there are no such shards, or fewer usable samples than a batch needs.
    """
    require = "caption" if any(view.needs_caption for view in views.values()) else None
    source = ShardSource(shards=str(shards) if isinstance(shards, Path) else shards, require=require)
    notice_once(*(f"data: {problem}" for problem in source.problems))
    return Dataset(source, views=views, global_batch_size=global_batch_size, seed=seed, num_workers=num_workers)


class Dataset:
    """Iterable of batches of a source. Each iteration is the next epoch, in an order and with crops of its own.

    A batch has the keys that the views make, finished on the CPU, and `index`, the samples' indices in the source. All
    samples are shuffled together, and a remainder too small for a batch is dropped. With torch.distributed, each rank
    gets its part of every batch.

    Args:
        source: the samples.
        views: batch key to view.
        global_batch_size: samples per batch over all ranks.
        seed: decides the order of the samples, the crops and the captions.
        num_workers: processes that decode; 0 decodes in this process.

    Attributes:
        source: the samples, for example for `source[batch["index"][0]].captions`.
    """

    def __init__(
        self, source: Source, *, views: Mapping[str, View], global_batch_size: int, seed: int, num_workers: int
    ) -> None:
        self.source = source
        self.views = dict(views)
        order = Order(
            collections=source.collections,
            global_batch_size=global_batch_size,
            seed=seed,
            shuffle_window=sum(len(collection.parts) for collection in source.collections),
        )
        self.loader = BatchLoader(
            Batches(source, order, self.views, TurboDecoder()),
            Epochs(order),
            size=local_batch_size(global_batch_size, world_size()),
            num_batches=order.steps_per_epoch,
            num_workers=num_workers,
            prefetch_bytes=sys.maxsize,  # the loader's own limit is half of the free shared memory
            local_ranks=int(os.environ.get("LOCAL_WORLD_SIZE", world_size())),
            buffers=None,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self.loader:
            for bad in batch["notes"].bad:
                notice(f"data: bad sample replaced by {bad.substitute}: {bad.reason}")
            finished = {"index": batch["index"]}
            for name, view in self.views.items():
                columns = {suffix: x for suffix, x in batch[name].items() if suffix not in view.statistics}
                finished |= {key(name, suffix): column for suffix, column in view.finish(columns).items()}
            yield finished


class Epochs(Sampler[Plan]):
    """Sampler of this rank's plans for one epoch; each iteration gives the next epoch."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.epoch = 0

    def __iter__(self) -> Iterator[Plan]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for step in range(self.order.steps_per_epoch):
            yield Plan(epoch, step, self.order.rank_batch(epoch, step, rank(), world_size()))
