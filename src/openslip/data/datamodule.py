"""Data path from top to bottom: sample order -> decoded batches (`batches.py`) -> device -> augmentation."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from openslip.data.bad_samples import BadSamples
from openslip.data.batches import Batches, Plan
from openslip.data.chunks import chunk_bytes
from openslip.data.image.decode import Decoder
from openslip.data.loader import BatchLoader
from openslip.data.order import VERSION, Order, local_batch_size
from openslip.data.pinned import Buffers
from openslip.data.source import Source
from openslip.data.upload import Upload
from openslip.data.view import Batch, View, key
from openslip.data.workers import check_workers, number_of_workers
from openslip.distributed import of_all_ranks, world_size
from openslip.errors import UserError

BUDGET_EVERY = 16  # interval, in steps, at which the ranks sum their bad samples


class DataModule(pl.LightningDataModule):
    """Training batches: the views that an objective names, and `index` [B], the index of each sample in the source.

    Args:
        source: the dataset.
        views: batch key to view.
        decoder: decodes and crops images; decoders differ slightly in the pixels.
        global_batch_size: samples per step over all ranks.
        seed: only seed of the sample order, the crops and the captions.
        shuffle_window: number of shards whose samples are shuffled together.
        bad_sample_budget: share of an epoch's samples that may be bad, 0 to 1.
        bad_samples_file: file that lists the bad samples; None writes no file.
        num_workers: worker processes that decode; 0 decodes in the main process, `auto` adapts to the number of cores.
        prefetch_gb: upper bound for the decoded samples in shared memory, in GB per rank.
        overfit_batches: number of global batches that are repeated, with the same crops and captions, to see whether
            the model can learn them; None uses all samples.
    """

    def __init__(
        self,
        *,
        source: Source,
        views: dict[str, View],
        decoder: Decoder,
        global_batch_size: int,
        seed: int,
        shuffle_window: int,
        bad_sample_budget: float,
        bad_samples_file: Path | None,
        num_workers: int | str,
        prefetch_gb: float,
        overfit_batches: int | None = None,
    ) -> None:
        super().__init__()
        check_workers(num_workers)
        if not prefetch_gb > 0:
            raise UserError(f"data.prefetch_gb={prefetch_gb}: expected more than 0, e.g. 3")
        if not 0 <= bad_sample_budget <= 1:
            raise UserError(f"data.bad_sample_budget={bad_sample_budget}: expected a share of 0 to 1, such as 0.001")
        self.source = source
        self.order = Order(
            collections=source.collections,
            global_batch_size=global_batch_size,
            seed=seed,
            shuffle_window=shuffle_window,
        )
        self.batches = Batches(source, self.order, views, decoder)
        self.views = views
        self.bad_sample_budget = bad_sample_budget
        self.bad_samples_file = bad_samples_file
        self.num_workers = num_workers
        self.prefetch_gb = prefetch_gb
        if overfit_batches is not None and overfit_batches > self.order.steps_per_epoch:
            raise UserError(
                f"data.overfit_batches={overfit_batches}: an epoch has only {self.order.steps_per_epoch} batches"
            )
        self.overfit_batches = overfit_batches
        self.consumed = 0  # steps of the run so far; the pretrainer increments it, `load_state_dict` restores it
        self.statistics: dict[str, tuple[int, int]] = {}  # per column: number of ones, number of samples
        self.loader: BatchLoader | None = None
        self.upload = Upload()
        self.bad_samples = BadSamples(None, rank=0, budget=1.0, samples_per_epoch=0)

    @property
    def steps_per_epoch(self) -> int:
        """Number of global batches per epoch; the last, incomplete one is dropped."""
        return self.order.steps_per_epoch

    @property
    def waited(self) -> float:
        """Seconds that this process has waited for batches."""
        return 0.0 if self.loader is None else self.loader.waited

    def train_dataloader(self) -> DataLoader:
        # Rank and world size are read here, in the main process, because spawned workers have no process group.
        rank, num_ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        self.bad_samples = BadSamples(
            self.bad_samples_file,
            rank=rank,
            budget=self.bad_sample_budget,
            samples_per_epoch=self.order.num_samples - self.order.dropped,
        )
        self.bad_samples.cut_back(*divmod(self.consumed, self.steps_per_epoch))
        size = local_batch_size(self.order.global_batch_size, num_ranks)
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        local_ranks = self.trainer.num_devices if self.trainer else 1
        self.loader = BatchLoader(
            self.batches,
            RankOrder(
                self.order,
                rank,
                num_ranks,
                lambda: self.consumed,
                self.source.prefetch,
                overfit_batches=self.overfit_batches,
            ),
            size=size,
            num_batches=self.steps_per_epoch,
            num_workers=number_of_workers(self.num_workers, local_ranks, on_gpu=on_gpu),
            prefetch_bytes=int(self.prefetch_gb * 1e9),
            local_ranks=local_ranks,
            buffers=Buffers(chunk_bytes(self.views, size)) if on_gpu else None,
        )
        return self.loader

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move the columns to the device, except those that their view keeps on the CPU."""
        with self.upload.beside(device):
            moved = {"notes": batch["notes"], "index": batch["index"].to(device, non_blocking=True)}
            for name, view in self.views.items():
                moved[name] = {
                    suffix: column if suffix in view.on_cpu else column.to(device, non_blocking=True)
                    for suffix, column in batch[name].items()
                }
            if "buffer" in batch and device.type == "cuda":
                batch["buffer"].give_back(torch.cuda.current_stream(device).record_event())
        return moved

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Batch:
        """Finish each view on the device, and record the batch's bad samples and statistics."""
        notes = batch["notes"]
        self.bad_samples.record(notes.epoch, notes.step, notes.bad)
        self.check_budget(notes.step)
        finished, device = Batch(index=batch["index"]), batch["index"].device
        with self.upload.beside(device):
            for name, view in self.views.items():
                columns = dict(batch[name])
                for suffix in view.statistics:
                    column = columns.pop(suffix)
                    count, samples = self.statistics.get(suffix, (0, 0))
                    self.statistics[suffix] = count + int(column.sum()), samples + len(column)
                finished |= {key(name, suffix): column for suffix, column in view.finish(columns).items()}
        self.upload.hand_over(finished, device)
        return finished

    def check_budget(self, step: int) -> None:
        """Raise DataError on all ranks if the epoch has had more bad samples than the budget allows."""
        if world_size() == 1 or (step + 1) % BUDGET_EVERY == 0 or step + 1 == self.steps_per_epoch:
            self.bad_samples.check(sum(of_all_ranks(self.bad_samples.in_epoch)))

    def metrics(self) -> dict[str, float]:
        """Number of this rank's bad samples in this epoch, and its views' statistics since the start, in per cent."""
        shares = {f"data/{name}": 100 * count / samples for name, (count, samples) in self.statistics.items()}
        return {"data/bad_samples": float(self.bad_samples.in_epoch), **shares}

    @property
    def fingerprint(self) -> str:
        """First 32 hexadecimal digits of the SHA-256 hash of the source's fingerprint."""
        return hashlib.sha256(self.source.fingerprint.encode()).hexdigest()[:32]

    def state_dict(self) -> dict[str, Any]:
        """Data position and settings of the run: the same on all ranks, a few hundred bytes as JSON."""
        lists = {name: view.fingerprint for name, view in self.batches.views.items() if view.fingerprint}
        return {
            "step": self.consumed,
            "seed": self.order.seed,
            "global_batch_size": self.order.global_batch_size,
            "samples": self.order.num_samples,
            "window": self.order.shuffle_window,
            "decoder": self.batches.decoder.name,
            "collection": self.fingerprint,
            "order": VERSION,
            **{f"word lists of {name}": fingerprint for name, fingerprint in lists.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at the step of a saved state.

        Raises:
            UserError: an entry other than the step has changed, so the next batches would differ from those of the run.
        """
        here = self.state_dict()
        changed = [key for key in here if key != "step" and state_dict.get(key) != here[key]]
        if changed:
            shown = "; ".join(f"{NAMES.get(key, key)}: then {state_dict.get(key)}, now {here[key]}" for key in changed)
            raise UserError(
                f"the run cannot resume with other data ({shown}): restore it, or start a run with name=other"
            )
        self.consumed = state_dict["step"]


NAMES = {
    **{"samples": "samples in data.source", "window": "data.shuffle_window", "decoder": "data.decoder"},
    **{"collection": "fingerprint of data.source", "order": "version of the sample order"},
}


class RankOrder(Sampler[Plan]):
    """Sampler of one rank's plans for the remaining steps of the current epoch.

    The epoch follows from the number of steps done, because the trainer's own epoch count differs after a stop within
    an epoch.

    Args:
        order: sample order of the run.
        rank: rank of this process.
        world_size: number of ranks.
        consumed: returns the number of steps of the run that are done.
        prefetch: called with the first sample of every part that will soon be read.
        overfit_batches: number of global batches that are repeated; None plans all samples.
    """

    def __init__(
        self,
        order: Order,
        rank: int,
        world_size: int,
        consumed: Callable[[], int],
        prefetch: Callable[[int], None],
        *,
        overfit_batches: int | None = None,
    ) -> None:
        self.order = order
        self.rank = rank
        self.world_size = world_size
        self.consumed = consumed
        self.prefetch = prefetch
        self.overfit_batches = overfit_batches
        # Raises, before training starts, if the global batch size is not divisible by the number of ranks.
        local_batch_size(order.global_batch_size, world_size)

    def __iter__(self) -> Iterator[Plan]:
        epoch, first_step = divmod(self.consumed(), self.order.steps_per_epoch)
        if self.overfit_batches is not None:
            # The epoch decides the crops and captions too, so the batches of the first one repeat all of that.
            for consumed in range(self.consumed(), (epoch + 1) * self.order.steps_per_epoch):
                step = consumed % self.overfit_batches
                yield Plan(0, step, self.order.rank_batch(0, step, self.rank, self.world_size))
            return
        near: set[int] = set()
        for step in range(first_step, self.order.steps_per_epoch):
            ahead = self.order.read_ahead(epoch, step)
            for sample in ahead:
                if sample not in near:
                    self.prefetch(sample)
            near = set(ahead)
            yield Plan(epoch, step, self.order.rank_batch(epoch, step, self.rank, self.world_size))

    def __len__(self) -> int:
        return self.order.steps_per_epoch
