"""On a GPU a batch is made beside the step before; streams are stood in for by a list of what happens on them."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from data_modules import data_module
from shard_files import write_pairs
from torch import Tensor
from views import crop_view

from openslip.data.batches import Notes
from openslip.data.datamodule import DataModule
from openslip.data.sources.shards import ShardSource
from openslip.data.upload import Upload
from openslip.data.view import Columns, View
from openslip.training.sizing.micro_batch_size import made_ahead

GPU = torch.device("cuda", 0)


class Streams:
    """What is used of `torch.cuda`, with a log of who does what."""

    def __init__(self) -> None:
        self.now = "computing"
        self.log: list[tuple[str, ...]] = []

    def Stream(self, device: torch.device) -> str:
        return "beside"

    @contextmanager
    def stream(self, name: str) -> Any:
        before, self.now = self.now, name
        yield
        self.now = before

    def current_stream(self, device: torch.device) -> Any:
        streams, steps = self, sum(entry[0] == "event" for entry in self.log)

        class Event:
            def synchronize(self) -> None:
                streams.log.append(("host waits for step", str(steps)))

        class Current:
            def wait_stream(self, other: str) -> None:
                streams.log.append((streams.now, "waits for", other))

            def record_event(self) -> Event:
                streams.log.append(("event", str(steps)))
                return Event()

        return Current()


class OnGpu(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True  # pyright: ignore[reportAssignmentType]
    device = GPU  # pyright: ignore[reportAssignmentType]
    streams: Streams

    def record_stream(self, s: Any) -> None:
        self.streams.log.append(("kept for", self.streams.now))


class Column(Tensor):
    """A tensor whose move to a GPU is written down."""

    streams: Streams

    def to(self, device: torch.device, **_: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert device == GPU
        self.streams.log.append((self.streams.now, "uploads"))
        moved = torch.Tensor(self).as_subclass(OnGpu)
        moved.streams = self.streams
        return moved


class Written(View):
    on_cpu = ("length",)

    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def draw(self, sample: Any, rng: Any) -> dict[str, Any]:
        return {}

    def finish(self, columns: Columns) -> Columns:
        self.streams.log.append((self.streams.now, "finishes"))
        return columns


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    found = Streams()
    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    return found


@pytest.fixture
def data(streams: Streams, tmp_path: Path) -> DataModule:
    write_pairs(tmp_path / "0.tar", 24)
    source = ShardSource(shards=str(tmp_path), require="caption")
    return data_module(source, views={"image": Written(streams), "text": Written(streams)})


def sent(data: DataModule, streams: Streams, device: torch.device) -> dict[str, Tensor]:
    """A batch as the loader gives it, sent as Lightning does it."""

    def column() -> Tensor:
        tensor = torch.zeros(12).as_subclass(Column)
        tensor.streams = streams
        return tensor

    batch = {"index": column(), "notes": Notes(0, 0, []), "image": {"": column()}, "text": {"": column()}}
    batch["text"]["length"] = torch.ones(12)
    moved = data.transfer_batch_to_device(batch, device, 0)
    return data.on_after_batch_transfer(moved, 0)


def test_a_batch_is_uploaded_and_finished_beside_the_step_before(data: DataModule, streams: Streams):
    batch = sent(data, streams, GPU)
    assert [type(column) for column in batch.values()] == [OnGpu, OnGpu, OnGpu, Tensor]
    assert streams.log == [
        *[("beside", "uploads")] * 3,
        *[("beside", "finishes")] * 2,
        ("computing", "waits for", "beside"),
        *[("kept for", "computing")] * 3,  # not the lengths, which are on the CPU
        ("event", "0"),
    ]


def test_no_more_than_one_batch_is_made_ahead(data: DataModule, streams: Streams):
    sent(data, streams, GPU)
    streams.log = [("event", "0")]
    sent(data, streams, GPU)
    assert streams.log[1:3] == [("host waits for step", "0"), ("beside", "uploads")]


def test_a_cpu_has_no_stream(monkeypatch: pytest.MonkeyPatch):
    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.delattr(torch.cuda, name)
    upload, batch = Upload(), {"image": torch.zeros(2)}
    with upload.beside(torch.device("cpu")):
        upload.hand_over(batch, torch.device("cpu"))


def test_the_next_batch_is_counted_where_a_gpu_tries_micro_batches():
    images, lengths = torch.empty(1024, 3, 8, 8, device="meta"), torch.ones(1024)
    one = images.nbytes
    assert made_ahead({"image": images, "aug1": images, "text_length": lengths}) == 2 * one + one // 2 + 4 * one // 2
    assert made_ahead({"text_length": lengths}) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_made_beside_a_step_are_those_made_before_it():
    view, upload, device = crop_view(32, (0.08, 1.0)), Upload(), torch.device("cuda", 0)
    raw = [torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8).pin_memory() for _ in range(8)]
    work = torch.randn(4096, 4096, device=device)
    sums = []
    for images in raw:
        with upload.beside(device):
            finished = view.finish({"": images.to(device, non_blocking=True)})
        upload.hand_over(finished, device)
        work = (work @ work).clamp(-1, 1)  # the step, which the host runs ahead of
        sums.append(finished[""].double().sum())
        del finished
    expected = [view.finish({"": images.to(device)})[""].double().sum() for images in raw]
    assert torch.equal(torch.stack(sums), torch.stack(expected))
