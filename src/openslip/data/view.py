"""Contract: a view makes one or more batch keys of a sample, in the loader's worker and then on the training device.

An objective's config names its views; a view called `text` makes the key `text` and, of its column `length`, the key
`text_length`. Image and text views are alike.
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

Columns = dict[str, Tensor]  # by suffix; "" is the key itself


class DecodedImage(NamedTuple):
    """An image's pixels as its decoder holds them."""

    pixels: Any
    decoder: Decoder

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.decoder.size(self.pixels)

    def crop(self, box: Box, side: int) -> UInt8[np.ndarray, "3 side side"]:
        """A box (left, top, right, bottom) scaled to a square of `side` pixels, bilinear with antialiasing."""
        return self.decoder.crop(self.pixels, box, side)


class DecodedSample(NamedTuple):
    """What a view is made of; `captions` is empty and `label` None where the dataset has none."""

    key: str
    image: DecodedImage
    captions: tuple[str, ...]
    label: int | None


class View(ABC):
    """How the columns of one view are drawn, collated and finished; only `draw` must be written.

    Attributes:
        needs_caption: whether a sample without captions is of no use; it is then replaced.
        on_cpu: columns that stay on the CPU, where reading them costs no synchronisation (lengths, parameters).
        statistics: columns of zeros and ones whose mean is logged as `data/COLUMN` in per cent, and no more.
        padding: columns that are as wide as the longest of the samples, such as token ids, and what fills shorter ones.
        cost_varies: whether samples differ in what they cost, as captions of different lengths do.
    """

    needs_caption: bool = False
    on_cpu: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    padding: Mapping[str, int] = MappingProxyType({})
    cost_varies: bool = False

    @abstractmethod
    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        """One sample's columns by suffix; all randomness comes from `rng`, which is the sample's and the view's own."""

    def collate(self, drawn: list[dict[str, Any]]) -> Columns:
        """The columns [samples, ...] of some samples of a batch, still in the worker.

        Which samples of a batch are collated together is left to the loader: a row depends on its own sample alone.
        """
        return {suffix: torch.from_numpy(np.stack([each[suffix] for each in drawn])) for suffix in drawn[0]}

    def finish(self, columns: Columns) -> Columns:
        """The batch's columns as the objective gets them, on the training device.

        On a GPU this runs beside the step before, on a stream of its own: make all that it needs of the columns.
        """
        return columns

    def compile(self) -> None:
        """Compile what `finish` runs on a GPU; called where the run compiles."""
        return

    def example(self, size: int, generator: torch.Generator, *, varied: bool) -> Columns:
        """Finished columns of `size` samples of noise: what costs and equalities are measured on.

        Args:
            size: number of samples.
            generator: of the noise.
            varied: samples of different cost; else each costs the most that any can.
        """
        drawn = []
        for place in range(size):
            sample = noise(place, generator, num_words=1 + place if varied else 1000)
            rng = np.random.default_rng(int(torch.randint(1 << 31, (), generator=generator)))
            drawn.append(self.draw(sample, rng))
        columns = self.finish(self.collate(drawn))
        return {suffix: column for suffix, column in columns.items() if suffix not in self.statistics}


def noise(place: int, generator: torch.Generator, *, num_words: int) -> DecodedSample:
    """A sample of random pixels with one caption of so many words."""
    pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=generator).numpy()
    image = DecodedImage(Image.fromarray(pixels), PillowDecoder())
    return DecodedSample(f"noise {place}", image, (" ".join(["a"] * num_words),), 0)


def column_bytes(views: Mapping[str, View]) -> list[int]:
    """Bytes of each column that a worker makes of a sample."""
    sample = noise(0, torch.Generator().manual_seed(0), num_words=1000)
    drawn = [(view, view.draw(sample, np.random.default_rng(0))) for view in views.values()]
    return [column.nbytes for view, columns in drawn for column in view.collate([columns]).values()]


def key(name: str, suffix: str) -> str:
    """The batch key of a view's column."""
    return f"{name}_{suffix}" if suffix else name


def example_batch(views: Mapping[str, View], size: int, *, varied: bool = False) -> dict[str, Tensor]:
    """A finished batch of noise on the CPU, the same one every time; `varied` as in `View.example`."""
    generator = torch.Generator().manual_seed(0)
    batch = {"index": torch.arange(size)}
    for name, view in views.items():
        columns = view.example(size, generator, varied=varied)
        batch |= {key(name, suffix): column for suffix, column in columns.items()}
    return batch
