"""Contract of a view: it makes one or more batch keys from each sample, in a worker and then on the training device.

An objective's config names its views. A view called `text` makes the key `text` and, from its column `length`, the key
`text_length`. The contract is the same for images and text.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from openslip.data.image.decode import Box, Decoder, PillowDecoder
from openslip.errors import UserError

Columns = dict[str, Tensor]  # suffix to column; the suffix "" stands for the view's own key


class DecodedImage(NamedTuple):
    """Decoded pixels, in the form that their decoder uses."""

    pixels: Any
    decoder: Decoder

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.decoder.size(self.pixels)

    def crop(self, box: Box, side: int) -> UInt8[np.ndarray, "3 side side"]:
        """Scale a box (left, top, right, bottom) to a square of `side` pixels, bilinear with antialiasing."""
        return self.decoder.crop(self.pixels, box, side)


class DecodedSample(NamedTuple):
    """Input of a view; `captions` is empty and `label` is None if the dataset has none."""

    place: int  # in the dataset
    key: str
    image: DecodedImage
    captions: tuple[str, ...]
    label: int | None


class View(ABC):
    """Draws, collates and finishes the columns of one view; a subclass must define only `draw`.

    Attributes:
        needs_caption: whether a sample without captions is unusable and must be replaced.
        needs_image: whether `draw` reads the image; images that no view reads are not decoded.
        on_cpu: columns that stay on the CPU, where reading them needs no synchronisation (lengths, parameters).
        statistics: columns of zeros and ones, used only to log their mean as `data/COLUMN` in per cent.
        padding: columns that are as wide as their longest sample, such as token ids, with the value that pads the rest.
        cost_varies: whether samples differ in compute cost, as captions of different lengths do.
    """

    needs_caption: bool = False
    needs_image: bool = True
    on_cpu: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    padding: Mapping[str, int] = MappingProxyType({})
    cost_varies: bool = False

    @abstractmethod
    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        """Make one sample's columns by suffix, with `rng` as the only source of randomness.

        Args:
            sample: the decoded sample.
            rng: generator for this sample, view and epoch.
        """

    def collate(self, drawn: list[dict[str, Any]]) -> Columns:
        """Stack the columns of some samples of a batch to [samples, ...]; runs in the worker.

        The loader decides which samples are collated together, so a row may depend on its own sample only.
        """
        return {suffix: torch.from_numpy(np.stack([each[suffix] for each in drawn])) for suffix in drawn[0]}

    def finish(self, columns: Columns) -> Columns:
        """Turn the columns of a batch into those that the objective gets; runs on the training device.

        On a GPU this runs on its own stream, concurrently with the previous step: use no tensors from outside, but
        derive everything from the columns.
        """
        return columns

    @property
    def fingerprint(self) -> str:
        """Hash of the files that `draw` reads, such as lists of words; empty if it reads none."""
        return ""

    def compile(self) -> None:
        """Compile the operations that `finish` runs on a GPU; called if the run uses torch.compile."""
        return

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        """Finished columns of `size` samples of noise, for measurements of cost and checks of equality.

        Args:
            size: number of samples.
            generator: source of the noise.
            varied: whether the samples differ in cost; else each has the highest cost possible.
        """
        drawn = []
        for place in range(size):
            sample = noise(place, generator, num_words=1 + place if varied else 1000)
            rng = np.random.default_rng(int(torch.randint(1 << 31, (), generator=generator)))
            drawn.append(self.draw(sample, rng))
        columns = self.finish(self.collate(drawn))
        return {suffix: column for suffix, column in columns.items() if suffix not in self.statistics}


def noise(place: int, generator: torch.Generator, *, num_words: int) -> DecodedSample:
    """Sample of random pixels with one caption of `num_words` words."""
    pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=generator).numpy()
    image = DecodedImage(Image.fromarray(pixels), PillowDecoder())
    return DecodedSample(place, f"noise {place}", image, (" ".join(["a"] * num_words),), 0)


def column_bytes(views: Mapping[str, View]) -> list[int]:
    """Bytes per sample of each column that a worker makes, at the longest caption."""
    sample = noise(0, torch.Generator().manual_seed(0), num_words=1000)
    drawn = [(view, view.draw(sample, np.random.default_rng(0))) for view in views.values()]
    return [column.nbytes for view, columns in drawn for column in view.collate([columns]).values()]


def key(name: str, suffix: str) -> str:
    """Batch key of the column `suffix` of the view `name`."""
    return f"{name}_{suffix}" if suffix else name


class Batch(dict[str, Tensor]):
    """The columns of a batch by key.

    Raises:
        UserError: a key is read that no view makes.
    """

    def __missing__(self, name: str) -> Tensor:
        raise UserError(
            f"objective.views makes {', '.join(self)}, but the objective also reads {name}: use the views of its file "
            "in configs/objective/"
        )


def example_batch(views: Mapping[str, View], size: int, *, varied: bool = False) -> Batch:
    """Finished batch of noise on the CPU, the same at every call.

    Args:
        views: batch key to view.
        size: number of samples.
        varied: whether the samples differ in cost; else each has the highest cost possible.
    """
    generator = torch.Generator().manual_seed(0)
    batch = Batch(index=torch.arange(size))
    for name, view in views.items():
        columns = view.example(size, generator, varied=varied)
        batch |= {key(name, suffix): column for suffix, column in columns.items()}
    return batch
