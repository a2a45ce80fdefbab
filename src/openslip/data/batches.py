"""A step's samples to a batch: one decode each -> views, a caption; what cannot be used is replaced."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from openslip.data.bad_samples import BadSample
from openslip.data.image.crop import View
from openslip.data.image.decode import Decoder
from openslip.data.order import Order, Randomness
from openslip.data.source import Sample, Source
from openslip.errors import DataError, UserError
from openslip.text.clip_bpe import Tokenizer, text_lengths

ATTEMPTS = 10  # samples tried in the place of one that is bad
NEAR_ATTEMPTS = 5  # of them in the same shard, which is open


class Plan(NamedTuple):
    """What one rank does in a step."""

    epoch: int
    step: int
    indices: np.ndarray


class Notes(NamedTuple):
    """What the main process is told with a batch."""

    epoch: int
    step: int
    bad: list[BadSample]
    captions: int
    truncated: int


class Batches(Dataset):
    """A plan to a batch of uint8 views, their drawn parameters, and token ids: one decode per sample."""

    def __init__(
        self,
        source: Source,
        order: Order,
        views: dict[str, View],
        decoder: Decoder,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.source = source
        self.order = order
        self.views = views
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.generator = Randomness(order.seed)

    def __getitem__(self, index: Plan) -> dict[str, Any]:
        epoch, step, planned = index
        columns: dict[str, list[np.ndarray]] = {}
        captions, used, bad = [], [], []
        for place in planned.tolist():
            found, sample, picture = self.load(epoch, place, bad)
            used.append(found)
            for name, view in self.views.items():
                pixels, parameters = view(picture, self.decoder, self.generator(epoch, place, name))
                columns.setdefault(name, []).append(pixels)
                if parameters is not None:
                    columns.setdefault(f"{name}_parameters", []).append(parameters)
            if self.tokenizer is not None:
                rng = self.generator(epoch, place, "text")
                several = len(sample.captions) > 1
                captions.append(sample.captions[rng.integers(len(sample.captions)) if several else 0])
        batch: dict[str, Any] = {name: torch.from_numpy(np.stack(column)) for name, column in columns.items()}
        batch["index"] = torch.tensor(used)
        truncated = 0
        if self.tokenizer is not None:
            text, cut_off = self.tokenizer.encode_rows(captions)
            truncated = int(cut_off.sum())
            batch["text_length"] = text_lengths(text)
            batch["text"] = text[:, : int(batch["text_length"].max())].contiguous()
        batch["notes"] = Notes(epoch, step, bad, len(captions), truncated)
        return batch

    def load(self, epoch: int, planned: int, bad: list[BadSample]) -> tuple[int, Sample, Any]:
        """A planned sample and its picture, or those of a substitute that depends on seed, epoch and sample alone."""
        index, problem = planned, ("", "")
        for attempt in range(ATTEMPTS + 1):
            key = f"sample {index}"
            try:
                sample = self.source[index]
                key = sample.key
                picture = self.decoder.decode(sample.image, sample.key)
                if self.tokenizer is not None and not sample.captions:
                    raise UserError(f"{sample.key}: no caption that is not empty; only simclr can be trained on it")
            except DataError:
                raise
            except UserError as error:
                problem = problem if attempt else (key, str(error))
                rng = self.generator(epoch, planned, f"substitute {attempt}")
                near = attempt < NEAR_ATTEMPTS
                index = int(rng.integers(*(self.order.part_of(planned) if near else self.order.collection_of(planned))))
            else:
                if attempt:
                    bad.append(BadSample(planned, *problem, sample.key))
                return index, sample, picture
        raise DataError(f"{problem[1]}; nor could {ATTEMPTS} samples be used in its place. Check data.source")
