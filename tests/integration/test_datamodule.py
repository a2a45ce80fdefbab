"""The data path as the trainer meets it: what a batch holds does not depend on who computes it."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from data_modules import data_module, trainer_of
from marks import slow
from PIL import Image
from published import simclr_augment
from shard_files import jpeg, write_pairs, write_tar
from torch import Tensor
from views import MEAN, STD, caption_view, crop_view, drawn, flattened

from openslip.data.datamodule import DataModule, RankOrder
from openslip.data.image.decode import TurboDecoder
from openslip.data.source import Sample, Source
from openslip.data.sources.shards import ShardSource
from openslip.errors import DataError, UserError
from openslip.text.clip_bpe import ClipBpe


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ShardSource:
    folder = tmp_path_factory.mktemp("shards")
    for number, (first, size) in enumerate(((0, 10), (10, 50), (60, 1))):  # uneven on purpose
        write_pairs(folder / f"{number}.tar", size, first)
    return ShardSource(shards=str(folder), require="caption")


def data(source: Source, num_workers: int = 0, *, text: bool = True, batch: int = 12, **changes: Any) -> DataModule:
    """SLIP's three views."""
    strong = crop_view(16, (0.08, 1.0), simclr_augment())
    views = {"image": crop_view(16, (0.5, 1.0)), "aug1": strong, "aug2": strong}
    changes |= {"views": views | ({"text": caption_view()} if text else {}), "global_batch_size": batch}
    return data_module(source, num_workers, **changes)


def epochs(datamodule: DataModule, count: int = 2, start_method: str | None = None) -> list[dict[str, Any]]:
    """Batches as the workers make them, flattened; the trainer is played by hand."""
    loader = datamodule.train_dataloader()
    if start_method is not None:
        loader.multiprocessing_context = start_method
    batches = []
    for _ in range(count):
        batches += map(flattened, loader)
        datamodule.consumed = len(batches)
    return batches


def finished(datamodule: DataModule, count: int) -> list[dict[str, Tensor]]:
    """The first batches as the objective gets them."""
    loader = datamodule.train_dataloader()
    return [datamodule.on_after_batch_transfer(batch, 0) for batch, _ in zip(loader, range(count), strict=False)]


def same(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    return len(some) == len(others) and all(
        a.keys() == b.keys()
        and all(torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name] for name in a)
        for a, b in zip(some, others, strict=True)
    )


def rank_batches(source: Source, rank: int, world_size: int) -> list[dict[str, Any]]:
    datamodule = data(source)
    datamodule.trainer = trainer_of(rank, world_size)
    return epochs(datamodule, 1)


def test_a_batch_holds_what_the_objectives_read(source: ShardSource):
    datamodule = data(source)
    raw = next(iter(datamodule.train_dataloader()))
    batch = flattened(raw)
    notes = batch["notes"]
    assert (notes.epoch, notes.step, notes.bad) == (0, 0, [])
    shapes = {name: (tuple(column.shape), column.dtype) for name, column in batch.items() if name != "notes"}
    length = int(batch["text_length"].max())
    assert shapes == {
        "image": ((12, 3, 16, 16), torch.uint8),
        "aug1": ((12, 3, 16, 16), torch.uint8),
        "aug2": ((12, 3, 16, 16), torch.uint8),
        "aug1_parameters": ((12, 8), torch.float32),
        "aug2_parameters": ((12, 8), torch.float32),
        "text": ((12, length), torch.int64),
        "text_length": ((12,), torch.int64),
        "text_truncated": ((12,), torch.bool),
        "index": ((12,), torch.int64),
    }
    assert all(column.is_contiguous() for column in batch.values() if isinstance(column, Tensor))
    assert not torch.equal(batch["aug1"], batch["aug2"])
    ready = datamodule.on_after_batch_transfer(raw, 0)
    assert ready.keys() == {"image", "aug1", "aug2", "text", "text_length", "index"}
    expected = (batch["image"] / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(ready["image"], expected)


def test_texts_are_the_samples_captions_without_a_column_of_padding(source: ShardSource):
    tokenizer = ClipBpe(context_length=77, truncation="keep_end", special_text="plain")
    for batch in epochs(data(source), 1):
        captions = [source[index].captions[0] for index in batch["index"].tolist()]
        expected, lengths = tokenizer.encode(captions)
        length = batch["text"].shape[1]
        assert torch.equal(batch["text"], expected[:, :length])
        assert not expected[:, length:].any()
        assert batch["text"][:, -1].any()
        assert torch.equal(batch["text_length"], lengths)


def test_without_a_tokenizer_captions_are_not_needed(tmp_path: Path):
    path = write_tar(tmp_path / "a.tar", [(f"{number}.jpg", jpeg(number)) for number in range(12)])
    batch = epochs(data(ShardSource(shards=str(path), require=None), text=False), 1)[0]
    assert "text" not in batch
    assert "text_length" not in batch


def test_every_sample_once_per_epoch_in_a_new_order(source: ShardSource):
    datamodule = data(source)
    batches = epochs(datamodule, 2)
    assert (datamodule.steps_per_epoch, datamodule.order.dropped) == (5, 1)
    first, second = ([i for batch in part for i in batch["index"].tolist()] for part in (batches[:5], batches[5:]))
    for seen in (first, second):
        assert len(seen) == len(set(seen)) == 60
    assert np.mean(np.array(first) != np.array(second)) > 0.9


def test_what_does_not_fill_a_batch_is_dropped_and_told(source: ShardSource):
    order = data(source, batch=25).order
    assert (order.steps_per_epoch, order.dropped) == (2, 11)


def test_a_samples_crops_change_with_the_epoch_and_with_the_seed(source: ShardSource):
    def crops(batches: list[dict[str, Tensor]]) -> dict[int, Tensor]:
        return {int(i): pixels for batch in batches for i, pixels in zip(batch["index"], batch["image"], strict=True)}

    batches = epochs(data(source), 2)
    first, second, other = crops(batches[:5]), crops(batches[5:]), crops(epochs(data(source, seed=1), 1))
    for crop in (second, other):
        common = first.keys() & crop.keys()
        assert len(common) > 50
        assert sum(torch.equal(first[i], crop[i]) for i in common) == 0


@pytest.mark.parametrize(
    ("num_workers", "start_method"), [(1, "fork"), (2, "fork"), (1, "forkserver"), slow(1, "spawn")]
)
def test_workers_change_nothing(source: ShardSource, num_workers: int, start_method: str):
    assert same(epochs(data(source)), epochs(data(source, num_workers), start_method=start_method))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_out_each_global_batch_without_changing_a_sample(source: ShardSource, world_size: int):
    whole = rank_batches(source, 0, 1)
    parts = [rank_batches(source, rank, world_size) for rank in range(world_size)]
    assert {len(part) for part in parts} == {len(whole)}  # every rank takes as many steps
    for step, batch in enumerate(whole):
        for name in ("index", "image", "aug1", "aug2", "aug1_parameters", "text_length"):
            assert torch.equal(torch.cat([part[step][name] for part in parts]), batch[name])


def test_a_global_batch_that_the_ranks_do_not_divide_is_refused_at_the_start(source: ShardSource):
    with pytest.raises(UserError, match="global_batch_size=12 cannot be divided among 5 ranks: use 10"):
        rank_batches(source, 0, 5)
    with pytest.raises(UserError, match="global_batch_size=62 is more than the dataset's 61 samples"):
        data(source, batch=62)


def test_one_decode_per_sample(source: ShardSource):
    decoded = []

    class Counting(TurboDecoder):
        def decode(self, data: bytes, name: str) -> Any:
            decoded.append(name)
            return super().decode(data, name)

    seen = [int(i) for batch in epochs(data(source, decoder=Counting()), 1) for i in batch["index"]]
    assert decoded == [source[index].key for index in seen]


class Captioned(Source):
    """Each sample says which of its captions was chosen."""

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int, /) -> Sample:
        return Sample(key=str(index), image=jpeg(0), captions=("a", "b b", "c c c", "d d d d"), label=None)

    @property
    def fingerprint(self) -> str:
        return "captioned"


def test_captions_are_drawn_evenly_and_anew_each_epoch():
    batches = epochs(data(Captioned(), batch=100), 2)
    by_epoch = [
        {int(i): int(n) - 2 for b in part for i, n in zip(b["index"], b["text_length"], strict=True)}
        for part in (batches[:4], batches[4:])
    ]
    uniform = np.array([[part[i] for i in range(400)] for part in by_epoch])
    assert np.abs(np.bincount(uniform.ravel(), minlength=5)[1:] / 800 - 0.25).max() < 0.06
    assert 0.65 < (uniform[0] != uniform[1]).mean() < 0.85  # 3 of 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_collection_without_a_readable_picture_is_one_line_that_names_one(tmp_path: Path, num_workers: int):
    path = write_pairs(tmp_path / "a.tar", 12, image=jpeg(0)[:300])
    source = ShardSource(shards=str(path), require="caption")
    with pytest.raises(DataError) as refusal:
        epochs(data(source, num_workers))
    message = str(refusal.value)
    assert message.startswith(f"{path}:s00")
    assert "cannot be decoded" in message
    assert message.endswith("nor could 10 samples be used in its place. Check data.source")
    assert "\n" not in message
    assert "Traceback" not in message


class Recorder(pl.LightningModule):
    """Trains nothing, keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[dict[str, Tensor]] = []

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.seen.append(batch)
        return self.weight.sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.trainer.datamodule.consumed += 1  # pyright: ignore[reportAttributeAccessIssue]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path: Path) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_trainer_sees_each_epochs_batches_augmented(source: ShardSource, trainer: pl.Trainer, num_workers: int):
    recorder, datamodule = Recorder(), data(source, num_workers)
    trainer.fit(recorder, datamodule=datamodule)
    expected: list[dict[str, Tensor]] = []
    alone = data(source)
    for epoch in range(3):
        alone.consumed = 5 * epoch
        expected += finished(alone, 5)
    assert len(recorder.seen) == 15
    assert same(recorder.seen, expected)


def test_workers_live_through_all_epochs(source: ShardSource):
    datamodule = data(source, 2)
    loader = datamodule.train_dataloader()
    workers = []
    for epoch in range(3):
        datamodule.consumed = 5 * epoch
        assert len(list(loader)) == 5
        assert loader._iterator is not None
        workers.append([worker.pid for worker in loader._iterator._workers])  # pyright: ignore
    assert workers[0] == workers[1] == workers[2]


def test_a_view_shows_its_picture():
    """Left half red, right half blue: a crop of the whole keeps them so."""
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:, :10, 0] = pixels[:, 10:, 2] = 255
    crop = drawn(crop_view(20, (1.0, 1.0)), Image.fromarray(pixels), np.random.default_rng(0))[""]
    assert np.array_equal(crop, pixels.transpose(2, 0, 1))


def test_batches_to_overfit_are_those_of_the_first_epoch_again_and_again(source: ShardSource):
    repeated = data(source, overfit_batches=2)

    def plans(consumed: int, overfit_batches: int | None) -> list[tuple[int, int, list[int]]]:
        order = RankOrder(repeated.order, 0, 1, lambda: consumed, lambda _: None, overfit_batches=overfit_batches)
        return [(epoch, step, indices.tolist()) for epoch, step, indices in order]

    first, second = plans(0, None)[:2]
    assert first != second
    assert plans(0, 2) == [first, second, first, second, first]  # an epoch ends after an odd number of steps
    assert plans(5, 2) == [second, first, second, first, second]
    assert plans(8, 2) == [first, second]  # a resumed run
    one, _, three = map(flattened, islice(repeated.train_dataloader(), 3))
    assert same([one], [three])  # crops and captions too
    with pytest.raises(UserError, match=r"data\.overfit_batches=6: an epoch has only 5 batches"):
        data(source, overfit_batches=6)
