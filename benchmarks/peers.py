"""What the data path is measured against: the published pipeline and open_clip's, as their users get them."""

import io
import random
from collections.abc import Callable, Iterator

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from webdataset import filters
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import SimpleShardList
from webdataset.tariterators import tarfile_to_samples

from openslip.data.image.decode import Decoder
from openslip.data.view import DecodedImage, DecodedSample, View
from openslip.text.clip_bpe import ClipBpe

SIZE = 224
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class PillowBlur:
    """The published blur (SLIP, utils.py): sigma is uniform in 0.1..2 pixels."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def published_chain() -> list[Callable]:
    """The published augmentation of a crop (SLIP, main.py), up to normalised floats."""
    return [
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.RandomApply([PillowBlur()], p=0.5),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]


class Pairs(Dataset):
    """Decoded by Pillow, every transform applied to the picture, the caption to its ids: sample by sample."""

    def __init__(self, pictures: list[bytes], captions: list[str], views: list[Callable]) -> None:
        self.pictures = pictures
        self.captions = captions
        self.views = views
        self.tokenizer = SimpleTokenizer()

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image = Image.open(io.BytesIO(self.pictures[index])).convert("RGB")
        return self.tokenizer(self.captions[index])[0], *(view(image) for view in self.views)


def published_slip(pictures: list[bytes], captions: list[str], batch_size: int) -> Iterator[Tensor]:
    """Ids of endless batches; the three views are made with them."""
    normalised = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    weak = transforms.Compose([transforms.RandomResizedCrop(SIZE, scale=(0.5, 1.0)), *normalised])
    strong = transforms.Compose([transforms.RandomResizedCrop(SIZE, scale=(0.08, 1.0)), *published_chain()])
    return endless(pictures, captions, [weak, strong, strong], batch_size)


def open_clip_transform(pictures: list[bytes], captions: list[str], batch_size: int) -> Iterator[Tensor]:
    """Ids of endless batches; open_clip's one view is made with them."""
    return endless(pictures, captions, [open_clip_view()], batch_size)


def open_clip_view() -> transforms.Compose:
    view = open_clip.image_transform(SIZE, is_train=True)
    assert isinstance(view, transforms.Compose)
    return view


def endless(pictures: list[bytes], captions: list[str], views: list[Callable], batch_size: int) -> Iterator[Tensor]:
    loader = DataLoader(Pairs(pictures, captions, views), batch_size=batch_size, shuffle=True, drop_last=True)
    while True:
        for text, *_ in loader:
            yield text


def open_clip_pipeline(shards: list[str], batch_size: int) -> Iterator[Tensor]:
    """From tar files to batches with webdataset, stage by stage as open_clip_train/data.py, without the shuffling."""
    tokenizer = SimpleTokenizer()
    dataset = DataPipeline(
        SimpleShardList(shards),
        tarfile_to_samples(),
        filters.select(lambda sample: "txt" in sample and "jpg" in sample),
        filters.decode("pilrgb"),
        filters.rename(image="jpg;png;jpeg;webp", text="txt"),
        filters.map_dict(image=open_clip_view(), text=lambda text: tokenizer(text)[0]),
        filters.to_tuple("image", "text"),
        filters.batched(batch_size, partial=False),
    )
    while True:
        for _, text in dataset:
            yield text


def webdataset_with_ours(
    shards: list[str], batch_size: int, view: View, decoder: Decoder, tokenizer: ClipBpe
) -> Iterator[Tensor]:
    """One pass of webdataset's reading and batching around our decoder, crop and tokenizer, without shuffling."""
    rng = np.random.default_rng(0)

    def load(sample: dict) -> tuple[np.ndarray, str]:
        image = DecodedImage(decoder.decode(sample["jpg"], sample["__key__"]), decoder)
        return view.draw(DecodedSample(0, "", image, (), None), rng)[""], sample["txt"].decode("utf-8")

    def collate(samples: list[tuple[np.ndarray, str]]) -> tuple[Tensor, Tensor]:
        pixels, captions = zip(*samples, strict=True)
        return torch.from_numpy(np.stack(pixels)), tokenizer.encode(captions)[0]

    batched = filters.batched(batch_size, collation_fn=collate, partial=False)
    for _, text in DataPipeline(SimpleShardList(shards), tarfile_to_samples(), filters.map(load), batched):
        yield text


def webdataset_samples(shards: list[str]) -> Iterator[dict]:
    """Every sample's members, undecoded."""
    yield from DataPipeline(SimpleShardList(shards), tarfile_to_samples())
