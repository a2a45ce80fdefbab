"""Datasets: from tar shards to batches; `open_dataset` gives batches to a training loop of your own."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openslip.data.captions.choice import Caption
    from openslip.data.dataset import open_dataset
    from openslip.data.image.crop import RandomResizedCrop

__all__ = ["Caption", "RandomResizedCrop", "open_dataset"]

_HOMES = {"Caption": "captions.choice", "RandomResizedCrop": "image.crop", "open_dataset": "dataset"}


def __getattr__(name: str) -> Any:
    # Lazy, because the processes that convert datasets must not import torch.
    if name in _HOMES:
        return getattr(importlib.import_module(f"openslip.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'openslip.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
