"""The samples of a step as a batch: one decode each, then every view; what cannot be used is replaced."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from openslip.data.bad_samples import BadSample
from openslip.data.image.decode import Decoder
from openslip.data.order import Order, Randomness
from openslip.data.source import Source
from openslip.data.view import DecodedImage, DecodedSample, View
from openslip.errors import DataError, UserError

ATTEMPTS = 10  # samples tried in the place of one that is bad
NEAR_ATTEMPTS = 5  # of them in the same shard, which is open


class Plan(NamedTuple):
    """The samples of one rank in a step."""

    epoch: int
    step: int
    indices: np.ndarray


class Notes(NamedTuple):
    """What the main process is told with a batch."""

    epoch: int
    step: int
    bad: list[BadSample]


class Batches(Dataset):
    """A plan to the collated columns of every view, with one decode per sample."""

    def __init__(self, source: Source, order: Order, views: dict[str, View], decoder: Decoder) -> None:
        self.source = source
        self.order = order
        self.views = views
        self.decoder = decoder
        self.needs_caption = any(view.needs_caption for view in views.values())
        self.generator = Randomness(order.seed)

    def __getitem__(self, index: Plan) -> dict[str, Any]:
        epoch, step, planned = index
        drawn: dict[str, list[dict[str, Any]]] = {name: [] for name in self.views}
        used: list[int] = []
        bad: list[BadSample] = []
        for place in planned.tolist():
            found, sample = self.load(epoch, place, bad)
            used.append(found)
            for name, view in self.views.items():
                drawn[name].append(view.draw(sample, self.generator(epoch, place, name)))
        columns = {name: view.collate(drawn[name]) for name, view in self.views.items()}
        return {"index": torch.tensor(used), "notes": Notes(epoch, step, bad), **columns}

    def load(self, epoch: int, planned: int, bad: list[BadSample]) -> tuple[int, DecodedSample]:
        """A planned sample, decoded, or a substitute that depends on seed, epoch and sample alone."""
        index, problem = planned, ("", "")
        for attempt in range(ATTEMPTS + 1):
            name = f"sample {index}"
            try:
                sample = self.source[index]
                name = sample.key
                pixels = self.decoder.decode(sample.image, sample.key)
                if self.needs_caption and not sample.captions:
                    raise UserError(f"{sample.key}: no caption that is not empty; only simclr can be trained on it")
            except DataError:
                raise
            except UserError as error:
                problem = problem if attempt else (name, str(error))
                rng = self.generator(epoch, planned, f"substitute {attempt}")
                near = attempt < NEAR_ATTEMPTS
                index = int(rng.integers(*(self.order.part_of(planned) if near else self.order.collection_of(planned))))
            else:
                if attempt:
                    bad.append(BadSample(planned, *problem, sample.key))
                image = DecodedImage(pixels, self.decoder)
                return index, DecodedSample(sample.key, image, sample.captions, sample.label)
        raise DataError(f"{problem[1]}; nor could {ATTEMPTS} samples be used in its place. Check data.source")
