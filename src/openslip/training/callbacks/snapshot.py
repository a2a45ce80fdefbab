"""Keeps the first batch for the report: its views as the model sees them, and which caption finds which image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from openslip.durable import write_arrays
from openslip.inference.bundle import evaluating
from openslip.models.dual_encoder import DualEncoder
from openslip.run import watchdog
from openslip.text.tokenizer import Tokenizer
from openslip.training.pretrainer import Pretrainer


class Snapshot(pl.Callback):
    """Leaves `arrays/views.npz` and, for models with a text tower, `arrays/similarity.npz`.

    Args:
        num_samples: kept of the first batch.
        mean: of the normalisation to undo.
        std: likewise.
        tokenizer: to write the captions out; None without captions.
    """

    def __init__(self, *, num_samples: int, mean: list[float], std: list[float], tokenizer: Tokenizer | None) -> None:
        self.num_samples = num_samples
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)
        self.tokenizer = tokenizer
        self.kept: dict[str, Tensor] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        if self.kept or not trainer.is_global_zero:
            return
        self.kept = {key: value[: self.num_samples].cpu() for key, value in batch.items()}
        views = {key: self.picture(value) for key, value in self.kept.items() if value.ndim == 4}
        with watchdog.phase("setup"):
            self.save(trainer, "views", captions=self.captions(), **views)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pretrainer)
        if pl_module.step == trainer.max_steps:  # no step is left, and `on_train_end` is not called
            self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Pretrainer)
        model = pl_module.evaluated
        if not trainer.is_global_zero:  # a run that goes on gives the kept batch to every rank
            return
        if not self.kept or not isinstance(model, DualEncoder) or "text" not in self.kept:
            return
        pictures = self.kept["image"] if "image" in self.kept else self.kept["aug1"]
        device = pl_module.device
        text, length = self.kept["text"].to(device), self.kept["text_length"].to(device)
        with evaluating(model, device):
            image_features = F.normalize(model.encode_image(pictures.to(device)), dim=-1)
            text_features = F.normalize(model.encode_text(text, length), dim=-1)
        matrix = (image_features @ text_features.T).float().cpu().numpy()
        self.save(trainer, "similarity", matrix=matrix, captions=self.captions(), images=self.picture(pictures))

    def picture(self, view: Float[Tensor, "n 3 height width"]) -> UInt8[np.ndarray, "n 3 height width"]:
        return ((view * self.std + self.mean).clamp(0, 1) * 255).round().byte().numpy()

    def captions(self) -> np.ndarray:
        if self.tokenizer is None or "text" not in self.kept:
            return np.array([], dtype=str)
        lengths = self.kept["text_length"].tolist()
        return np.array(
            [self.tokenizer.decode(ids[1:n]) for ids, n in zip(self.kept["text"].tolist(), lengths, strict=True)]
        )

    def save(self, trainer: pl.Trainer, name: str, **arrays: Any) -> None:
        write_arrays(Path(trainer.default_root_dir) / "arrays" / f"{name}.npz", arrays)

    def state_dict(self) -> dict[str, Tensor]:
        return self.kept

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.kept = state_dict
