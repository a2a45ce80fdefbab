"""The data module of the tests."""

from typing import Any

from published import simclr_augment

from openslip.data.datamodule import DataModule
from openslip.data.image.crop import View
from openslip.data.image.decode import TurboDecoder
from openslip.data.source import Source
from openslip.text.clip_bpe import Tokenizer


def data_module(source: Source, num_workers: int = 0, **changes: Any) -> DataModule:
    """Batches of 12 small samples; a keyword is an argument of the data module."""
    settings: dict[str, Any] = {
        "source": source,
        "views": {
            "image": View(size=16, scale=(0.5, 1.0), augment=None),
            "aug1": View(size=16, scale=(0.08, 1.0), augment=simclr_augment()),
        },
        "decoder": TurboDecoder(),
        "tokenizer": Tokenizer(context_length=77, truncation="keep_end", special_text="plain"),
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "global_batch_size": 12,
        "seed": 0,
        "shuffle_window": 2,
        "bad_sample_budget": 1.0,
        "bad_samples_file": None,
        "num_workers": num_workers,
    }
    return DataModule(**settings | changes)
