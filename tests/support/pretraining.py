"""A few steps of the small float64 models by Lightning's loop, without data files."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from small_models import small_batch, small_model
from torch.utils.data import DataLoader
from views import MEAN, STD

from openslip.data.datamodule import DataModule
from openslip.data.image.eval_transform import EvalTransform
from openslip.data.view import Batch
from openslip.optim import WarmupCosine
from openslip.training.pretrainer import Pretrainer

BATCH = 12


class Batches(DataModule):
    """The same small batch at every step of one epoch, without files."""

    def __init__(self, steps: int, dtype: torch.dtype) -> None:
        pl.LightningDataModule.__init__(self)
        self.order: Any = SimpleNamespace(global_batch_size=BATCH, steps_per_epoch=steps)
        self.consumed, self.loader = 0, None
        self.batch = {
            key: value.to(dtype) if value.is_floating_point() else value for key, value in small_batch(BATCH).items()
        }

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * self.steps_per_epoch, batch_size=None)  # pyright: ignore[reportArgumentType]

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        return batch

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Batch:
        return Batch(batch)

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}


class Rows(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))


def pretrainer(
    method: str, *, steps: int, dtype: torch.dtype = torch.float64, image: str = "vit", **options: Any
) -> Pretrainer:
    model, objective = small_model(method, image=image)
    settings: dict[str, Any] = {"weight_decay": 0.1, "layer_decay": None, "clip_norm": None, "ema_decay": None}
    torch.manual_seed(1)
    made = Pretrainer(
        model=model.to(dtype),
        objective=objective,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True),
        schedule=WarmupCosine(lr_start=1e-3, lr=1e-3, lr_end=1e-4, warmup_steps=1, max_steps=steps),
        architecture={},
        tokenizer=None,
        transform=EvalTransform(size=16, mean=MEAN, std=STD),
        **settings | options,
    )
    torch.manual_seed(2)  # `setup` made the head anew
    for parameter in made.objective.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.to(dtype)


def fit(
    made: Pretrainer,
    steps: int,
    *,
    callbacks: Sequence[pl.Callback] = (),
    logger: Logger | None = None,
    plugins: Any = (),
    data: DataModule | None = None,
    folder: Path | None = None,
    checkpoint: Path | None = None,
) -> pl.Trainer:
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=logger or False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        plugins=list(plugins),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    dtype = next(made.parameters()).dtype
    trainer.fit(made, datamodule=data or Batches(steps, dtype), ckpt_path=checkpoint)
    return trainer
