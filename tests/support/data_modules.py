"""The data module of the tests."""

from types import SimpleNamespace
from typing import Any

import torch
from published import simclr_augment
from views import caption_view, crop_view

from openslip.data.datamodule import DataModule
from openslip.data.image.decode import TurboDecoder
from openslip.data.source import Source


def data_module(source: Source, num_workers: int = 0, **changes: Any) -> DataModule:
    """Batches of 12 small samples; a keyword is an argument of the data module."""
    settings: dict[str, Any] = {
        "source": source,
        "views": {
            "image": crop_view(16, (0.5, 1.0)),
            "aug1": crop_view(16, (0.08, 1.0), simclr_augment()),
            "text": caption_view(),
        },
        "decoder": TurboDecoder(),
        "global_batch_size": 12,
        "seed": 0,
        "shuffle_window": 2,
        "bad_sample_budget": 1.0,
        "bad_samples_file": None,
        "num_workers": num_workers,
        "prefetch_gb": 3,
    }
    return DataModule(**settings | changes)


def trainer_of(rank: int, world_size: int) -> Any:
    """What the data module asks its trainer, on a CPU."""
    device = torch.device("cpu")
    return SimpleNamespace(
        global_rank=rank, world_size=world_size, num_devices=world_size, strategy=SimpleNamespace(root_device=device)
    )
