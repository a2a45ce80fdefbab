"""Objectives over labelled pairs: any split of the global batch makes the same update, and a resume is exact."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from data_modules import data_module, trainer_of
from labelled_methods import LABELLED_METHODS, Step, labelled_batch, labelled_model, labelled_step, labelled_weights
from marks import slow
from ranks import Ranks
from shard_files import jpeg, write_tar
from views import MEAN, STD, caption_view, crop_view

from openslip.data.image.eval_transform import EvalTransform
from openslip.data.label import Label
from openslip.data.source import Source
from openslip.data.sources.shards import ShardSource
from openslip.models.bag_of_tokens import BagOfTokens
from openslip.optim import WarmupCosine
from openslip.training.pretrainer import Pretrainer

GLOBAL_BATCH = 30
TILES = [None, 7]  # tiles that divide neither a rank's rows nor those of all ranks
SIZES = {1: ([30], [11, 19], [3, 9, 1, 10, 7]), 2: ([15], [4, 11], [2, 5, 1, 3, 4]), 3: ([10], [3, 7], [2, 3, 1, 3, 1])}


@pytest.fixture(scope="module")
def three_ranks():
    ranks = Ranks(3)
    yield ranks
    ranks.close()


def assert_equal(found: Step, expected: Step) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-11, msg=f"{name} differs")


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("method", LABELLED_METHODS)
def test_micro_batches_equal_the_whole_batch(method: str, tile: int | None):
    whole = labelled_step(None, method, GLOBAL_BATCH, [GLOBAL_BATCH])
    assert all(value.abs().max() > 1e-9 for name, value in whole.items() if "term" in name)
    for sizes in SIZES[1]:
        assert_equal(labelled_step(tile, method, GLOBAL_BATCH, sizes), whole)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("method", LABELLED_METHODS)
def test_two_ranks_equal_one_process(two_ranks: Ranks, method: str, tile: int | None):
    whole = labelled_step(None, method, GLOBAL_BATCH, [GLOBAL_BATCH])
    for sizes in SIZES[2]:
        for rank in two_ranks(labelled_step, tile, method, GLOBAL_BATCH, sizes):
            assert_equal(rank, whole)


@pytest.mark.slow
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("method", LABELLED_METHODS)
def test_three_ranks_equal_one_process(three_ranks: Ranks, method: str, tile: int | None):
    whole = labelled_step(None, method, GLOBAL_BATCH, [GLOBAL_BATCH])
    for sizes in SIZES[3]:
        for rank in three_ranks(labelled_step, tile, method, GLOBAL_BATCH, sizes):
            assert_equal(rank, whole)


@pytest.mark.slow
@pytest.mark.parametrize("method", LABELLED_METHODS)
def test_weights_after_20_steps_are_equal_for_all_splits(two_ranks: Ranks, three_ranks: Ranks, method: str):
    whole = labelled_weights(None, method, GLOBAL_BATCH, [GLOBAL_BATCH], 20)

    def assert_near(found: Step) -> None:
        for name, value in whole.items():
            # biases whose true gradient is zero move by AdamW's share of rounding noise
            torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-7, msg=f"{name} differs")

    assert_near(labelled_weights(7, method, GLOBAL_BATCH, SIZES[1][2], 20))
    for ranks, number in ((two_ranks, 2), (three_ranks, 3)):
        for rank in ranks(labelled_weights, 7, method, GLOBAL_BATCH, SIZES[number][2], 20):
            assert_near(rank)


@pytest.mark.parametrize("method", LABELLED_METHODS)
def test_ranks_that_do_not_exchange_their_samples_are_noticed(method: str):
    whole = labelled_step(None, method, GLOBAL_BATCH, [GLOBAL_BATCH])
    model, objective = labelled_model(method)
    halves = [
        {key: value[rows] for key, value in labelled_batch(GLOBAL_BATCH).items()} for rows in (slice(15), slice(15, 30))
    ]
    losses = [objective.terms(model, objective.encode(model, half))["loss"] for half in halves]
    assert abs((sum(losses) / 2 - whole["term.loss"]) / whole["term.loss"]) > 1e-3


# Data and resuming


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ShardSource:
    """Pictures of five classes."""
    members = []
    for number in range(100):
        members += [(f"s{number:04}.jpg", jpeg(number % 5)), (f"s{number:04}.txt", f"kind {number % 5}".encode())]
        members += [(f"s{number:04}.cls", str(number % 5).encode())]
    folder = tmp_path_factory.mktemp("shards")
    write_tar(folder / "0.tar", members)
    return ShardSource(shards=str(folder), require="caption")


def data(source: Source, method: str, num_workers: int = 0) -> Any:
    crop = crop_view(16, (0.5, 1.0))
    views = {"image": crop, "text": caption_view()} if method == "zero_data" else {"aug1": crop, "aug2": crop}
    return data_module(source, num_workers, views={**views, "label": Label()})


def pretrainer(method: str) -> Pretrainer:
    model, objective = labelled_model(method)
    if method == "zero_data":
        torch.manual_seed(0)
        model.text_tower = BagOfTokens(vocab_size=49408, width=16)  # the vocabulary of the captions
    return Pretrainer(
        model=model.float(),
        objective=objective.float(),
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3),
        weight_decay=0.1,
        layer_decay=None,
        clip_norm=None,
        ema_decay=None,
        schedule=WarmupCosine(warmup_steps=1, max_steps=20, lr=1e-3, lr_start=1e-6, lr_end=1e-5),
        architecture={},
        tokenizer=None,
        transform=EvalTransform(size=16, mean=MEAN, std=STD),
    )


def fit(module: Pretrainer, datamodule: Any, steps: int, folder: Path, checkpoint: Path | None = None) -> pl.Trainer:
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
    return trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("method", ["hadsell", *map(slow, ("siamese", "zero_data"))])
def test_a_run_that_resumes_within_an_epoch_ends_in_the_same_weights(source: ShardSource, tmp_path: Path, method: str):
    whole, first, again = pretrainer(method), pretrainer(method), pretrainer(method)
    fit(whole, data(source, method), 20, tmp_path)
    fit(first, data(source, method), 11, tmp_path).save_checkpoint(tmp_path / "stopped.ckpt")  # 8 steps an epoch
    fit(again, data(source, method), 20, tmp_path, tmp_path / "stopped.ckpt")
    stopped = first.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert any(not torch.equal(stopped[name], value) for name, value in whole.state_dict().items())


def test_a_view_of_labels_gives_the_class_of_each_sample(source: ShardSource):
    datamodule = data(source, "hadsell")
    datamodule.trainer = trainer_of(0, 1)
    batch = next(iter(datamodule.train_dataloader()))
    ready = datamodule.on_after_batch_transfer(batch, 0)
    assert ready["label"].dtype == torch.int64
    assert ready["label"].tolist() == [source[index].label for index in ready["index"].tolist()]


def test_samples_without_labels_have_classes_of_their_own(tmp_path: Path):
    write_tar(tmp_path / "0.tar", [(f"s{n}.jpg", jpeg(n)) for n in range(12)])
    datamodule = data(ShardSource(shards=str(tmp_path), require=None), "hadsell")
    datamodule.trainer = trainer_of(0, 1)
    batch = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    assert batch["label"].tolist() == [-1] * 12
    for method in LABELLED_METHODS:
        model, objective = labelled_model(method)
        bare = {**labelled_batch(12), "label": batch["label"]}
        distinct = {**bare, "label": torch.arange(12)}
        losses = [objective.terms(model, objective.encode(model, each))["loss"] for each in (bare, distinct)]
        assert torch.equal(*losses)
