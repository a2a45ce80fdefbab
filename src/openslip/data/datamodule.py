"""The data path, top to bottom: order -> samples -> views and captions -> batch -> augmentation on the device."""

from collections.abc import Iterator

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from openslip.data.augment import normalise
from openslip.data.captions import FirstCaption, UniformCaption, choose
from openslip.data.order import Order, Randomness
from openslip.data.source import Source
from openslip.data.views import View, open_image
from openslip.errors import UserError
from openslip.tokenizer import Tokenizer, text_lengths

Plan = tuple[int, np.ndarray]  # an epoch and one rank's sample indices of a step


class DataModule(pl.LightningDataModule):
    """Batches of the views that an objective asks for.

    A batch holds `[B, 3, S, S]` per view, `text` [B, L] trimmed to its longest caption, `text_length` [B], `index` [B].

    Args:
        source: the collection.
        views: batch key to view.
        captions: which caption of a sample is used.
        tokenizer: None for objectives without text; captions are then neither needed nor read.
        mean: of the normalisation, per channel.
        std: likewise.
        global_batch_size: samples per step over all ranks.
        seed: decides the order, the crops and the captions; nothing else does.
        num_workers: processes that decode; 0 decodes in this one.
    """

    def __init__(
        self,
        *,
        source: Source,
        views: dict[str, View],
        captions: FirstCaption | UniformCaption,
        tokenizer: Tokenizer | None,
        mean: list[float],
        std: list[float],
        global_batch_size: int,
        seed: int,
        num_workers: int,
    ) -> None:
        super().__init__()
        self.order = Order(num_samples=len(source), global_batch_size=global_batch_size, seed=seed)
        self.batches = Batches(source, views, captions, tokenizer, seed)
        self.views = views
        self.mean = mean
        self.std = std
        self.num_workers = num_workers

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; the tail that fills none is dropped."""
        return self.order.steps_per_epoch

    def train_dataloader(self) -> DataLoader:
        # Rank and world are read here, in the main process: workers that are spawned know of no process group.
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Loader(
            self.batches,
            batch_size=None,
            sampler=RankOrder(self.order, rank, world_size),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=4 if self.num_workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=one_thread,
        )

    def transfer_batch_to_device(
        self, batch: dict[str, Tensor], device: torch.device, dataloader_idx: int
    ) -> dict[str, Tensor]:
        """All but the views' parameters: read on the CPU, they cost the device no wait."""
        return {
            name: column if name.endswith("_parameters") else column.to(device, non_blocking=True)
            for name, column in batch.items()
        }

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Augments and normalises on the device, from uint8 and the parameters that came with each view."""
        for name, view in self.views.items():
            images = batch[name].float() / 255
            parameters = batch.pop(f"{name}_parameters", None)
            if view.augment is not None and parameters is not None:
                images = view.augment(images, parameters)
            batch[name] = normalise(images, self.mean, self.std)
        return batch


class Loader(DataLoader):
    """An error of the user's is the same one line, whether a worker meets it or this process."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            yield from super().__iter__()
        except UserError as error:  # from a worker, torch puts the traceback's text before it
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error


class RankOrder(Sampler[Plan]):
    """One rank's plan of an epoch; the trainer says which epoch."""

    def __init__(self, order: Order, rank: int, world_size: int) -> None:
        self.order = order
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        order.local_batch_size(world_size)  # refuses what the ranks do not divide before training starts

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Plan]:
        for indices in self.order.rank_batches(self.epoch, self.rank, self.world_size):
            yield self.epoch, indices

    def __len__(self) -> int:
        return self.order.steps_per_epoch


class Batches(Dataset):
    """A plan to a batch of uint8 views, their drawn parameters, and token ids: one decode per sample."""

    def __init__(
        self,
        source: Source,
        views: dict[str, View],
        captions: FirstCaption | UniformCaption,
        tokenizer: Tokenizer | None,
        seed: int,
    ) -> None:
        self.source = source
        self.views = views
        self.captions = captions
        self.tokenizer = tokenizer
        self.generator = Randomness(seed)

    def __getitem__(self, index: Plan) -> dict[str, Tensor]:
        epoch, indices = index
        columns: dict[str, list[np.ndarray]] = {}
        captions = []
        for place in indices.tolist():
            sample = self.source[place]
            image = open_image(sample.image, sample.key)
            for name, view in self.views.items():
                pixels, parameters = view(image, self.generator(epoch, place, name))
                columns.setdefault(name, []).append(pixels)
                if parameters is not None:
                    columns.setdefault(f"{name}_parameters", []).append(parameters)
            if self.tokenizer is not None:
                rng = self.generator(epoch, place, "text")
                captions.append(choose(self.captions, sample.captions, sample.key, rng))
        # np.stack keeps the crops' layout, colours innermost, in which every later operation is slower.
        batch = {name: torch.from_numpy(np.ascontiguousarray(np.stack(column))) for name, column in columns.items()}
        batch["index"] = torch.from_numpy(indices.astype(np.int64))
        if self.tokenizer is not None:
            text = self.tokenizer(captions)
            batch["text_length"] = text_lengths(text)
            batch["text"] = text[:, : int(batch["text_length"].max())].contiguous()
        return batch


def one_thread(worker: int) -> None:
    """Workers are many; each computes on one core."""
    torch.set_num_threads(1)
