"""Stores samples of the first batch for the report and W&B: their views and, at the end, image-text similarities."""

# pyright: reportIncompatibleMethodOverride=false

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch.nn.functional as F
from torch import Tensor

from openslip.arrays import write_arrays
from openslip.data.source import Source
from openslip.distributed import is_main_process
from openslip.inference.bundle import evaluating
from openslip.run import watchdog
from openslip.text.tokenizer import Tokenizer
from openslip.training.logging.images import log_similarity, log_views
from openslip.training.pretrainer import Pretrainer


class Snapshot(pl.Callback):
    """Writes `arrays/views.npz` and, if there are captions, `arrays/similarity.npz`; logs both to W&B as images.

    Views are recognised by their columns, not by their names: captions have lengths, and images have three channels.

    Args:
        num_samples: number of samples of the first batch that are kept.
    """

    def __init__(self, *, num_samples: int) -> None:
        self.num_samples = num_samples
        self.kept: dict[str, Tensor] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Pretrainer, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if self.kept or not is_main_process():
            return
        self.kept = {key: column[: self.num_samples].cpu() for key, column in batch.items()}
        images = {key: pl_module.transform.undo(self.kept[key]) for key in self.image_views()}
        with watchdog.phase("setup"):
            source, tokenizer = pl_module.data.source, pl_module.tokenizer
            captions = {key: self.captions(key, source, tokenizer) for key in self.caption_views()}
            self.save(trainer, "views", **images, **captions)
            texts = next((column.tolist() for column in captions.values()), [])
            log_views(trainer, images, texts, pl_module.step)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        if pl_module.step == pl_module.max_steps:  # no step remains, and Lightning does not call `on_train_end`
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Pretrainer) -> None:
        if pl_module.step < pl_module.max_steps:  # Lightning was stopped early; the run will be resumed
            return
        captions, side = self.caption_views(), pl_module.transform.size
        images = [key for key in self.image_views() if self.kept[key].shape[-1] == side]
        # A checkpoint restores `kept` on every rank, so the rank has to be checked here too.
        if not is_main_process() or pl_module.tokenizer is None or not images or not captions:
            return
        image, text, bundle = self.kept[images[0]], captions[0], pl_module.bundle
        with evaluating(bundle.model, bundle.device):
            encoded = bundle.model.encode_text(self.kept[text].to(bundle.device), self.kept[f"{text}_length"])
        matrix = bundle.encode_image(image) @ F.normalize(encoded, dim=-1).T
        similarities = matrix.cpu().numpy()
        texts = self.written(trainer, text, pl_module.tokenizer)
        self.save(trainer, "similarity", matrix=similarities, captions=texts, images=bundle.transform.undo(image))
        log_similarity(trainer, similarities, texts.tolist(), pl_module.step)

    def image_views(self) -> list[str]:
        return [key for key, x in self.kept.items() if x.ndim == 4 and len(x[0]) == 3 and x.is_floating_point()]

    def caption_views(self) -> list[str]:
        return [key for key, ids in self.kept.items() if ids.ndim == 2 and f"{key}_length" in self.kept]

    def captions(self, key: str, source: Source, tokenizer: Tokenizer | None) -> np.ndarray:
        """Return the captions of a view as the dataset has them; the array is empty without a tokenizer.

        A caption that the view has changed, for example masked, is decoded from its tokens.
        """
        if tokenizer is None:
            return np.array([], dtype=str)
        texts = []
        columns = (self.kept["index"], self.kept[key], self.kept[f"{key}_length"])
        for index, ids, length in zip(*(column.tolist() for column in columns), strict=True):
            tokens = ids[:length]
            texts.append(as_written(tokens, index, source, tokenizer) or tokenizer.decode(tokens))
        return np.array(texts)

    def written(self, trainer: pl.Trainer, key: str, tokenizer: Tokenizer) -> np.ndarray:
        """Return the captions that were stored with the first batch; reading the dataset again could take long."""
        with suppress(OSError, ValueError, KeyError), np.load(self.file(trainer, "views")) as arrays:
            return arrays[key]
        ids, lengths = self.kept[key].tolist(), self.kept[f"{key}_length"].tolist()
        return np.array([tokenizer.decode(row[:length]) for row, length in zip(ids, lengths, strict=True)])

    @staticmethod
    def file(trainer: pl.Trainer, name: str) -> Path:
        return Path(trainer.default_root_dir) / "arrays" / f"{name}.npz"

    def save(self, trainer: pl.Trainer, name: str, **arrays: Any) -> None:
        write_arrays(self.file(trainer, name), arrays)

    def state_dict(self) -> dict[str, Tensor]:
        return self.kept

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.kept = state_dict


def as_written(tokens: list[int], index: int, source: Source, tokenizer: Tokenizer) -> str | None:
    """Return the sample's caption that gives these tokens; None if no caption does, because a view changed the text."""
    with suppress(Exception):  # any error: the report must not end a run whose data cannot be read any more
        for caption in source[index].captions:
            ids, lengths = tokenizer.encode([caption])
            if ids[0, : lengths[0]].tolist() == tokens:
                return caption
    return None
