"""A few steps of the small float64 models by Lightning's loop, without data files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from small_models import small_batch, small_model
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openslip.data.datamodule import DataModule
from openslip.optim import WarmupCosine
from openslip.training.pretrainer import Pretrainer

BATCH = 12


class Batches(Dataset):
    """The same small batch at every step."""

    def __init__(self, steps: int, dtype: torch.dtype) -> None:
        self.steps = steps
        self.batch = {
            key: value.to(dtype) if value.is_floating_point() else value for key, value in small_batch(BATCH).items()
        }

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.batch


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
    settings: dict[str, Any] = {
        "weight_decay": 0.1,
        "layer_decay": None,
        "clip_norm": None,
        "ema_decay": None,
        "micro_batch_size": None,
    }
    torch.manual_seed(1)
    made = Pretrainer(
        model=model.to(dtype),
        objective=objective,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True),
        schedule=WarmupCosine(lr_start=1e-3, lr=1e-3, lr_end=1e-4, warmup_steps=1, total_steps=steps),
        description={},
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
    trainer.fit(made, data or DataLoader(Batches(steps, dtype), batch_size=None))
    return trainer
