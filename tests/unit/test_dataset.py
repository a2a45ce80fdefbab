"""`openslip.data.open_dataset`: batches without a trainer, the same as those of training."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from data_modules import data_module
from on_ranks import batches_of_a_dataset
from ranks import Ranks
from shard_files import jpeg, write_pairs, write_tar
from views import caption_view, crop_view

import openslip
from openslip.data.dataset import Dataset, open_dataset
from openslip.data.sources.shards import ShardSource
from openslip.errors import UserError

VIEWS = {"image": crop_view(16, (0.5, 1.0)), "text": caption_view()}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number, (first, size) in enumerate(((0, 10), (10, 15))):
        write_pairs(folder / f"{number}.tar", size, first)
    return folder


def dataset(shards: Path, **changes: Any) -> Dataset:
    settings = {"views": VIEWS, "global_batch_size": 8}
    return open_dataset(shards, **settings | changes)


def test_the_batches_are_those_of_training(shards: Path):
    source = ShardSource(shards=str(shards), require="caption")
    trained = data_module(source, views=VIEWS, global_batch_size=8, shuffle_window=2, seed=5)
    batches = list(dataset(shards, seed=5))
    assert len(batches) == 3
    for batch, raw in zip(batches, trained.train_dataloader(), strict=True):
        wanted = trained.on_after_batch_transfer(raw, 0)
        assert batch.keys() == wanted.keys() == {"index", "image", "text", "text_length"}
        assert all(torch.equal(batch[name], wanted[name]) for name in wanted)


def test_each_iteration_is_the_next_epoch_also_after_a_break(shards: Path):
    batches = dataset(shards)
    next(iter(batches))  # the rest of the first epoch is not read
    orders = [torch.cat([batch["index"] for batch in batches]).tolist() for _ in range(2)]
    assert [len(batches), *map(len, orders)] == [3, 24, 24]
    assert all(len({*order}) == 24 for order in orders)
    first = torch.cat([batch["index"] for batch in dataset(shards)]).tolist()
    assert all(a != b for a, b in pairwise([first, *orders]))


def test_workers_make_the_same_batches(shards: Path):
    alone, together = ([*dataset(shards, num_workers=n)] for n in (0, 1))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(alone, together, strict=True) for name in a)


def test_ranks_share_a_batch(shards: Path, two_ranks: Ranks):
    parts = two_ranks(batches_of_a_dataset, str(shards))
    for whole, *halves in zip(dataset(shards), *parts, strict=True):
        for name in ("index", "image", "text_length"):
            assert torch.equal(whole[name], torch.cat([half[name] for half in halves]))


def test_captions_are_needed_by_views_of_text_alone(tmp_path: Path):
    write_tar(tmp_path / "0.tar", [(f"{number}.jpg", jpeg(number)) for number in range(4)])
    images = dataset(tmp_path, views={"image": VIEWS["image"]}, global_batch_size=4)
    assert [batch["image"].shape for batch in images] == [(4, 3, 16, 16)]
    with pytest.raises(UserError, match="no usable sample"):
        dataset(tmp_path, global_batch_size=4)


def test_a_replaced_sample_and_a_skipped_entry_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pairs = [(f"{number}.jpg", jpeg(number)) for number in range(4)]
    texts = [(f"{number}.txt", b"a caption") for number in range(3)]
    damaged = [("4.jpg", jpeg(4)[:200]), ("4.txt", b"another")]
    write_tar(tmp_path / "0.tar", sorted([*pairs, *texts, *damaged]))
    batches = dataset(tmp_path, global_batch_size=4)
    assert capsys.readouterr().err.startswith("data: 1 x ")
    assert [len(batch["index"]) for batch in batches] == [4]
    assert "data: bad sample replaced by " in (said := capsys.readouterr().err)
    assert "0.tar:4" in said


def test_the_public_names_are_listed():
    assert {"load", "ZeroShotClassifier", "Bundle", "data", "__version__"} == {*dir(openslip)}
    assert {"open_dataset", "RandomResizedCrop", "Caption"} == {*dir(openslip.data)}
    for module in (openslip, openslip.data):
        assert all(getattr(module, name) for name in dir(module))
        with pytest.raises(AttributeError, match="has no attribute 'lod'"):
            _ = module.lod
