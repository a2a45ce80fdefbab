"""What is kept of each sample: numbers of fixed width, made where the sample is read."""

import hashlib
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from openslip.data.image.decode import open_image
from openslip.data.source import Source
from openslip.errors import UserError
from openslip.text.tokenizer import Tokenizer

SAMPLES_PER_PART = 64

# Hashes of 64 bits: among 15 million, two different ones are equal with a chance of 6 in a million.
SAMPLE = np.dtype([("image", "<u8"), ("bytes", "<u4"), ("captions", "<u2"), ("width", "<u4"), ("height", "<u4")])
CAPTION = np.dtype([("text", "<u8"), ("tokens", "<u4")])


@dataclass(frozen=True)
class Part:
    """Some samples in order."""

    samples: np.ndarray  # of dtype SAMPLE; image 0: it could not be read; width 0: not decoded
    captions: np.ndarray  # of dtype CAPTION, in the order of the samples
    unreadable: list[tuple[str, str]]  # key and reason


class Parts(Dataset):
    """The samples at `places`, some at a time."""

    def __init__(self, source: Source, tokenizer: Tokenizer, places: np.ndarray, decode: bool) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.places = places
        self.decode = decode

    def __len__(self) -> int:
        return -(-len(self.places) // SAMPLES_PER_PART)

    def __getitem__(self, index: int) -> Part:
        places = self.places[index * SAMPLES_PER_PART : (index + 1) * SAMPLES_PER_PART].tolist()
        samples, captions, unreadable = np.zeros(len(places), SAMPLE), [], []
        for row, place in zip(samples, places, strict=True):
            try:
                sample = self.source[place]
            except UserError as error:
                unreadable.append((f"sample {place}", str(error)))
                continue
            row["image"] = digest(sample.image)
            row["bytes"] = len(sample.image)
            row["captions"] = len(sample.captions)
            for caption in sample.captions:
                text = digest(caption.encode("utf-8", "surrogatepass"))
                captions.append((text, self.tokenizer.num_tokens(caption)))
            if self.decode:
                try:
                    row["width"], row["height"] = open_image(sample.image, sample.key).size
                except UserError as error:
                    unreadable.append((sample.key, str(error).removeprefix(f"{sample.key}: ").partition(";")[0]))
        return Part(samples, np.array(captions, CAPTION), unreadable)


def digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
