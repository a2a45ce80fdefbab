"""Make a batch from the samples of a step: decode each once, draw every view, replace bad samples."""

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

ATTEMPTS = 10  # substitutes that are tried for a bad sample
NEAR_ATTEMPTS = 5  # first attempts to replace a sample, from the same shard, which is already open


class Plan(NamedTuple):
    """The samples of one rank in a step."""

    epoch: int
    step: int
    indices: np.ndarray


class Notes(NamedTuple):
    """Report that a worker sends to the main process with a batch."""

    epoch: int
    step: int
    bad: list[BadSample]


class Batches(Dataset):
    """Dataset that turns a plan into the collated columns of every view, decoding each sample once."""

    def __init__(self, source: Source, order: Order, views: dict[str, View], decoder: Decoder) -> None:
        self.source = source
        self.order = order
        self.views = views
        self.decoder = decoder
        self.needs_caption = any(view.needs_caption for view in views.values())
        self.needs_image = any(view.needs_image for view in views.values())
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
        """Decode a planned sample, or else a substitute that depends on seed, epoch and sample only.

        Args:
            epoch: number of the epoch.
            planned: index of the planned sample.
            bad: list to which a bad sample and its substitute are appended.

        Returns:
            The index of the sample that was used, and the decoded sample.

        Raises:
            DataError: no substitute could be used either, or the source itself cannot be read.
        """
        index, problem = planned, ("", "")
        for attempt in range(ATTEMPTS + 1):
            name = f"sample {index}"
            try:
                sample = self.source[index]
                name = sample.key
                pixels = self.decoder.decode(sample.image, sample.key) if self.needs_image else None
                if self.needs_caption and not sample.captions:
                    raise UserError(f"{sample.key}: no usable caption; only simclr can be trained on it")
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
                return index, DecodedSample(index, sample.key, image, sample.captions, sample.label)
        raise DataError(f"{problem[1]}; nor could {ATTEMPTS} samples be used in its place. Check data.source")
