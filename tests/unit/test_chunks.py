"""A batch that is joined from chunks is the one that one process makes, in memory that is bounded."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from data_modules import data_module
from numbered import Numbered
from torch import Tensor
from torch.utils.data import Sampler
from uploads import Upload, ordinary
from views import MEAN, STD, caption_view, crop_view, flattened

from openslip.data import chunks, loader
from openslip.data.batches import Plan
from openslip.data.captions.masked import MaskedCaption
from openslip.data.chunks import ChunkOrder, JoinedBatch, Slots, chunk_bytes, chunk_size
from openslip.data.datamodule import DataModule
from openslip.data.image.crop import RandomResizedCrop
from openslip.data.loader import BatchLoader, chunks_ahead
from openslip.data.pinned import Buffer, Buffers, allocated
from openslip.data.view import Columns, DecodedSample, View
from openslip.errors import UserError
from openslip.text.clip_bpe import ClipBpe

CLIP_IDS = ClipBpe(context_length=77, truncation="keep_end", special_text="plain", mask_token=True)
MASKED = MaskedCaption(tokenizer=CLIP_IDS, probability=0.4, mask_share=0.8, random_share=0.1)
VIEWS = {"image": crop_view(16, (0.5, 1.0)), "text": caption_view(), "masked": MASKED}

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create . worker processes")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SMALLEST", 1)
    monkeypatch.setattr(chunks, "LARGEST", 3)


def data(num_workers: int, *, size: int = 60, batch: int = 20, **changes: Any) -> DataModule:
    source = Numbered(size, bad={3, 11, 12, 40})
    return data_module(source, num_workers, **{"views": VIEWS, "global_batch_size": batch} | changes)


def of_two_epochs(module: DataModule) -> list[dict[str, Any]]:
    batches = []
    for epoch in range(2):
        module.consumed = epoch * module.steps_per_epoch
        batches += map(flattened, module.train_dataloader() if module.loader is None else module.loader)
    return batches


def assert_same(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    assert len(some) == len(others)
    for first, second in zip(some, others, strict=True):
        assert first.keys() == second.keys()
        for name, column in first.items():
            if isinstance(column, Tensor):
                assert column.dtype == second[name].dtype, name
                assert torch.equal(column, second[name]), name
                assert column.is_contiguous()
            else:
                assert column == second[name], name


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_joined_batch_is_that_of_one_process(small_chunks: None, num_workers: int):
    """Captions of all lengths, masked labels, and the substitutes of bad samples in their order."""
    alone, joined = of_two_epochs(data(0)), of_two_epochs(data(num_workers))
    assert_same(alone, joined)
    assert sum(len(batch["notes"].bad) for batch in alone) == 8
    assert len({batch["text"].shape[1] for batch in alone}) > 1
    assert any((batch["masked_labels"] != -100).any() for batch in alone)


def test_an_epoch_that_is_left_in_the_middle_spoils_no_later_batch(small_chunks: None):
    module, alone = data(2), data(0)
    for start in (0, 1, 4):
        module.consumed = alone.consumed = start
        some = iter(module.train_dataloader() if module.loader is None else module.loader)
        assert_same([flattened(next(some))], [flattened(next(iter(alone.train_dataloader())))])


@pytest.mark.parametrize(
    ("batch", "num_workers", "size"),
    [
        *[(4096, 8, 128), (4096, 14, 98), (4096, 1, 128), (512, 8, 64), (256, 8, 32), (256, 64, 32), (129, 1, 65)],
        *[(20, 8, 20), (32, 1, 32), (4096, 0, 4096)],
    ],
)
def test_workers_make_equally_many_chunks_of_a_batch(batch: int, num_workers: int, size: int):
    assert chunk_size(batch, num_workers) == size


def test_a_chunk_never_takes_the_slot_of_one_that_may_still_be_read():
    class Plans(Sampler[Plan]):
        def __iter__(self) -> Iterator[Plan]:
            return (Plan(0, step, np.arange(100)) for step in range(5))

    tasks = list(ChunkOrder(Plans(), size=30, num_slots=7))
    assert [len(task.plan.indices) for task in tasks] == [30, 30, 30, 10] * 5
    ahead = [{task.slot for task in tasks[start : start + 7]} for start in range(len(tasks) - 6)]
    assert all(slots == set(range(7)) for slots in ahead)  # one that is read, and six that are made


class Who(View):
    """Tells which process made a sample, and after how many others of its own."""

    def __init__(self) -> None:
        self.count = 0

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        self.count += 1
        return {"": np.array([os.getpid(), self.count])}


def test_all_workers_make_the_first_batch_before_any_other():
    """32 of 128 samples each, in one chunk; one worker alone would make the batch four times as late."""
    first = next(iter(data(4, size=512, batch=128, views={"who": Who()}).train_dataloader()))
    who, counts = first["who"][""].unbind(1)
    assert sorted(np.unique(who, return_counts=True)[1].tolist()) == [32] * 4
    assert int(counts.max() - counts.min()) == 31  # nobody has made other samples in between


THREE_VIEWS: dict[str, View] = {
    "image": RandomResizedCrop(size=224, scale=(0.5, 1.0), augment=None, mean=MEAN, std=STD),
    "aug1": RandomResizedCrop(size=224, scale=(0.08, 1.0), augment=None, mean=MEAN, std=STD),
    "aug2": RandomResizedCrop(size=224, scale=(0.08, 1.0), augment=None, mean=MEAN, std=STD),
    "text": caption_view(),
}


def shared_bytes(views: dict[str, View], batch: int, num_workers: int, limit: float, local_ranks: int = 1) -> float:
    """Of one rank's slots."""
    chunk = chunk_size(batch, num_workers)
    size = chunk_bytes(views, chunk)
    ahead = chunks_ahead(num_workers, 10**6, size, int(limit), local_ranks)
    return (num_workers * ahead + 1) * size


@pytest.mark.parametrize("num_workers", [1, 8, 14, 30])
@pytest.mark.parametrize("batch", [64, 512, 4096, 32_768])
def test_what_is_in_flight_is_bounded(monkeypatch: pytest.MonkeyPatch, batch: int, num_workers: int):
    """Three views of 224 pixels; a batch of 4096 takes 1.9 GB."""
    monkeypatch.setattr(loader, "shared_memory", lambda: 64e9)
    shared = shared_bytes(THREE_VIEWS, batch, num_workers, 3e9)
    assert 2.4e9 < shared <= 3e9 or num_workers == 30
    pinned = Buffers(chunk_bytes(THREE_VIEWS, batch))
    num_bytes = pinned.count * allocated(pinned.size)
    assert num_bytes <= 4 * 2**30
    assert shared + num_bytes < 8e9
    assert pinned.count >= 2 or batch > 4096


def test_ranks_leave_half_of_what_is_free_to_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader, "shared_memory", lambda: 8e9)
    assert shared_bytes(THREE_VIEWS, 512, 4, 3e9, local_ranks=4) < 1e9
    assert 2.5e9 < shared_bytes(THREE_VIEWS, 512, 4, 3e9) < 3e9


def test_one_chunk_per_worker_is_made_where_there_is_room_for_no_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader, "shared_memory", lambda: 90.0)
    assert chunks_ahead(8, 100, 10, prefetch_bytes=10**9, local_ranks=1) == 1
    monkeypatch.setattr(loader, "shared_memory", lambda: 89.0)
    with pytest.raises(UserError, match=r"/dev/shm has 0 MiB free, but data.num_workers needs"):
        chunks_ahead(8, 100, 10, prefetch_bytes=10**9, local_ranks=1)


@pytest.mark.slow
def test_no_more_is_held_ready_than_there_is():
    module = data(2, size=120, batch=40)
    module.train_dataloader()
    assert module.loader is not None
    assert module.loader.prefetch_factor == 3  # six chunks an epoch
    assert len(module.loader) == 3


def test_slots_hold_columns_of_all_kinds_and_leave_out_what_does_not_fit():
    columns = {"": torch.arange(6).view(3, 2), "flags": torch.tensor([True, False, True])}
    chunk = {"index": torch.tensor([4, 5, 6]), "notes": None, "one": columns, "two": {"": torch.rand(3, 100)}}
    slots = Slots(2, 256)
    before = slots.memory[0].clone()
    sent = slots.write(1, chunk)
    assert not any(isinstance(place, Tensor) for place in (sent["index"], *sent["one"].values()))
    assert isinstance(sent["two"][""], Tensor)
    read = slots.read(1, sent)
    assert read["index"].data_ptr() == slots.memory[1].data_ptr()
    assert_same([flattened(read)], [flattened(chunk)])
    assert torch.equal(slots.memory[0], before)


class Words(View):
    """A column as wide as its longest sample, of which nobody says what fills it."""

    def draw(self, sample: DecodedSample, rng: np.random.Generator) -> dict[str, Any]:
        return {"": len(sample.captions[0].split())}

    def collate(self, drawn: list[dict[str, Any]]) -> Columns:
        return {"": torch.ones(len(drawn), max(each[""] for each in drawn))}


def test_a_column_of_changing_width_needs_padding(small_chunks: None):
    with pytest.raises(
        UserError, match=r"view words: column '' is \[\d+\] .*name what fills shorter ones in its `padding`"
    ):
        list(data(1, views={"words": Words()}).train_dataloader())


def test_padding_fills_columns_of_more_dimensions():
    view = Words()
    view.padding = {"": 7}
    batch = JoinedBatch({"words": view}, 3, None)
    for width, rows in ((2, 2), (4, 1)):
        batch.add({"index": torch.zeros(rows), "notes": None, "words": {"": torch.ones(rows, width, 5)}})
    assert batch.is_complete
    whole = batch.batch()["words"][""]
    assert whole.shape == (3, 4, 5)
    assert (whole[:2, 2:] == 7).all()
    assert whole.sum() == 2 * 2 * 5 + 2 * 2 * 5 * 7 + 4 * 5


def lies_in(column: Tensor, buffer: Buffer) -> bool:
    start = buffer.memory.data_ptr()
    return start <= column.data_ptr() < start + len(buffer.memory)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_moved_to_a_gpu_lies_in_a_buffer_that_is_used_again_after_its_upload(
    small_chunks: None, num_workers: int
):
    module, memory = data(num_workers), []
    size = chunk_bytes(VIEWS, 20)
    pinned = Buffers(size, 2 * allocated(size), allocate=lambda size: memory.append(ordinary(size)) or memory[-1])
    plans: Any = data(0).train_dataloader().sampler.plans  # pyright: ignore[reportAttributeAccessIssue]
    settings = {"size": 20, "num_batches": 3, "num_workers": num_workers, "prefetch_bytes": 10**9, "local_ranks": 1}
    expected = list(map(flattened, data(0).train_dataloader()))
    batches = BatchLoader(module.batches, plans, buffers=pinned, **settings)
    for batch, as_expected in zip(batches, expected, strict=True):
        buffer = batch.pop("buffer")
        assert_same([flattened(batch)], [as_expected])
        for name, view in VIEWS.items():
            for suffix, column in batch[name].items():
                assert lies_in(column, buffer) == (suffix not in view.on_cpu), (name, suffix)
        assert lies_in(batch["index"], buffer)
        buffer.give_back(Upload(is_done=True))
    assert len(memory) == 1


def test_a_buffer_goes_back_with_the_event_of_the_stream_that_copies(monkeypatch: pytest.MonkeyPatch):
    class Stream:
        def record_event(self) -> Upload:
            return upload

    class Column:
        def to(self, device: torch.device, *, non_blocking: bool) -> str:
            return f"{device} {non_blocking}"

    upload, module = Upload(is_done=True), data(0, views={"text": caption_view()})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(module.upload, "beside", lambda device: nullcontext())
    pinned = Buffers(64, 64, allocate=ordinary)
    columns = {suffix: Column() for suffix in ("", "length", "truncated")}
    batch = {"index": Column(), "notes": None, "text": columns, "buffer": pinned.take()}
    module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert pinned.take() is None  # on the CPU a column is the buffer's memory itself
    moved = module.transfer_batch_to_device(batch, torch.device("cuda", 0), 0)
    assert moved == {"index": "cuda:0 True", "notes": None, "text": {**columns, "": "cuda:0 True"}}
    assert pinned.returned == [(batch["buffer"].memory, upload)]
