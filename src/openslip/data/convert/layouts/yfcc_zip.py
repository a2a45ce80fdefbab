"""YFCC100M as published SLIP reads it: images in files such as ROOT/images/12/345.zip, and texts in yfcc15m.pkl.

The image with index 12345678 is 678.jpg in that zip. The pickle is a list of (index, title, description).
facebookresearch/SLIP make_dataset.py writes it, and `yfcc_loader` in datasets.py finds the images. Texts are cleaned as
there. Cleaning a text twice changes it only if it still contains a percent escape.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from openslip.data.convert import metadata as files
from openslip.data.convert import restricted_pickle
from openslip.data.convert.record import LeftOut, PictureInZip, Record
from openslip.errors import UserError

TAGS = re.compile(r"<a.*?>|<[bi]>|</[abi]>")
ADDRESSES = re.compile(r"http\S+|www\S+")


def records(root: Path, *, metadata: Path = Path("yfcc15m.pkl")) -> Iterator[Record | LeftOut]:
    """Yield records in the order of the index, so that the images of one archive follow each other.

    Args:
        root: folder of the dataset, with its zip archives in ROOT/images or in ROOT itself.
        metadata: the pickle, searched in the current folder and then in ROOT; loading it takes about 0.4 GB per million
            samples.
    """
    path = files.find(root, metadata)
    with path.open("rb") as file:
        samples = restricted_pickle.load(file, path)
    if not isinstance(samples, list):
        raise UserError(f"{path} holds a {type(samples).__name__}, not a list of (index, title, description)")
    for place, sample in enumerate(samples):
        if not isinstance(sample, (tuple, list)) or [*map(type, sample)] != [int, str, str]:
            raise UserError(f"{path}: entry {place} is {sample!r:.80}, not (index, title, description)")
    samples.sort(key=lambda sample: sample[0])
    folder = files.images_folder(root, None, "images")
    for index, title, description in samples:
        digits = f"{index:08}"
        texts = {"title": clean(title), "description": clean(description)}
        if not 0 <= index < 10**8:
            yield LeftOut(digits, "index that is not between 0 and 99999999")
        elif any(texts.values()):
            picture = PictureInZip(f"{folder}/{digits[:2]}/{digits[2:5]}.zip", f"{digits[5:]}.jpg")
            yield Record(digits, picture, texts)
        else:
            yield LeftOut(digits, "no title and no description")


def clean(text: str) -> str:
    """Clean a text as published: decode percent escapes and plus signs, remove addresses and tags a, b and i."""
    return ADDRESSES.sub("", TAGS.sub("", unquote(text).replace("+", " "))).strip()
